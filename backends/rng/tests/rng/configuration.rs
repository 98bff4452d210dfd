//! What an operator writes, and what comes of it without a driver.

use std::fs::File;

use virtio_backend::{Kind, Owner, Rate, reach};
use virtio_rng::{Config, ConfigError, Rng};

fn parsed(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

#[test]
fn nothing_need_be_written() {
    assert_eq!(parsed(""), Config::default());
    assert!(Rng::check(&parsed("")).is_ok());
}

#[test]
fn a_rate_can_be_written_and_read_back() {
    let config = parsed("rate = { per_second = 1024, burst = 4096 }");
    assert_eq!(config.rate, Some(Rate { per_second: 1024, burst: 4096 }));
    assert_eq!(parsed(&toml::to_string(&config).unwrap()), config);
}

#[test]
fn a_key_or_value_that_means_nothing_is_refused() {
    for text in
        ["source = \"/dev/urandom\"", "rate = 5", "rate = { per_second = 1 }", "rate = { per_second = -1, burst = 1 }"]
    {
        assert!(toml::from_str::<Config>(text).is_err(), "{text}");
    }
}

#[test]
fn a_rate_of_nothing_is_refused() {
    for rate in [Rate { per_second: 0, burst: 1 }, Rate { per_second: 1, burst: 0 }] {
        let error = Rng::check(&Config { rate: Some(rate) }).unwrap_err().to_string();
        assert!(error.contains("at least 1 byte"), "{error}");
    }
}

#[test]
fn nothing_of_the_host_is_opened_or_taken() {
    let owner =
        Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/nonexistent".into() };
    assert!(Rng::open(&mut Config::default(), &owner).unwrap().is_empty());
    assert!(Rng::exclusive(&Config::default()).is_empty());

    let stray = vec![File::open("/dev/null").unwrap().into()];
    let config = Config::default();
    let made = Rng::make(&config, stray, reach::directly::<Rng>(&config));
    assert!(matches!(made, Err(ConfigError::Descriptors { count: 1 })));
}

#[test]
fn the_page_on_adding_a_device_quotes_the_code_that_there_is() {
    let page = include_str!("../../../../docs/adding-a-device.md");
    let quoted = page.split("```").find(|part| part.contains("impl Kind for Rng")).expect("the page shows it");
    let code = quoted.strip_prefix("rust,ignore\n").unwrap();
    assert!(include_str!("../../src/device.rs").contains(code), "quote src/device.rs as it is:\n{code}");
}
