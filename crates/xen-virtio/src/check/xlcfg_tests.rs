//! Tests of xl's language.

use proptest::prelude::*;

use super::*;
use crate::check::{disk, virtio};

fn parse(text: &str) -> XlConfig {
    XlConfig::parse(Path::new("web.cfg"), text).unwrap_or_else(|mistake| panic!("{text:?}: {mistake}"))
}

fn refusal(text: &str) -> String {
    XlConfig::parse(Path::new("web.cfg"), text).expect_err(text).to_string()
}

fn list(text: &str, key: &str) -> Vec<(String, usize)> {
    parse(text).list(key).unwrap().into_iter().map(|(value, origin)| (value.to_owned(), origin.line)).collect()
}

#[test]
fn settings_are_texts_numbers_and_lists() {
    let config = parse("name = \"web\"\nmemory=0x200\nxen.extra_1 = 'it\\'s \"so\"'\nvcpus = 2; x = []\n\n# end\n");
    assert_eq!(config.text("name"), Ok(Some("web")));
    assert_eq!(config.text("memory"), Ok(Some("0x200")));
    assert_eq!(config.text("xen.extra_1"), Ok(Some("it's \"so\"")));
    assert_eq!(config.text("vcpus"), Ok(Some("2")));
    assert_eq!(config.list("x"), Ok(Vec::new()));
    assert_eq!((config.text("no"), config.list("no")), (Ok(None), Ok(Vec::new())));
}

#[test]
fn lists_go_over_lines_with_comments_and_a_comma_at_the_end() {
    let text = "disk = [ # two\n  'a,b',\n\n  # the second\n  \"c\" , ]\nirqs = [ 88, 0x59 ]";
    assert_eq!(list(text, "disk"), [("a,b".to_owned(), 2), ("c".to_owned(), 5)]);
    assert_eq!(list(text, "irqs"), [("88".to_owned(), 6), ("0x59".to_owned(), 6)]);
}

#[test]
fn the_last_of_several_counts_and_what_is_added_is_added() {
    let text = "a = 1\na = 'x'\na += 'y'\nl = ['1']\nl += [\n'2', '3']\nnew += ['4']\n";
    assert_eq!(parse(text).text("a"), Ok(Some("xy")));
    assert_eq!(list(text, "l"), [("1".to_owned(), 4), ("2".to_owned(), 6), ("3".to_owned(), 6)]);
    assert_eq!(list(text, "new"), [("4".to_owned(), 7)]);
}

#[test]
fn h10_what_xl_does_not_read_is_told_with_its_line() {
    for (text, line, what) in [
        ("name = web", 1, "no value"),
        ("a = 1\nName = 'web'", 2, "'N'"),
        ("a = 1\n\nname 'web'", 3, "no = behind name"),
        ("name = 'web", 1, "no ' at its end"),
        ("name = \"we\nb\"", 1, "no \" at its end"),
        ("name = 'web\\", 1, "no ' at its end"),
        ("name = '\\x41'", 1, "\\x"),
        ("name = 'a' 'b'", 1, "should end"),
        ("a = 1 b = 2", 1, "should end"),
        ("a = 1\ndisk = [ 'a'\n'b' ]", 3, "no comma"),
        ("a = 1\ndisk = [ 'a',\n'b'", 2, "no ] at its end"),
        ("disk = [ , 'a' ]", 1, "no value"),
        ("disk = [ 'a', , ]", 1, "no value"),
        ("a = 0xAB", 1, "'A'"),
        ("a = -1", 1, "'-'"),
        ("a = (1)", 1, "'('"),
        ("= 1", 1, "A setting is expected"),
        ("'a' = 1", 1, "A setting is expected"),
        ("a = 1\n# bye", 2, "line break"),
        ("a = 'x'\n\na += ['y']", 3, "line 1"),
        ("a = ", 1, "no value"),
        ("a +", 1, "'+'"),
        ("a = \u{0}", 1, "does not understand"),
        ("é = 1", 1, "does not understand"),
        ("\r\n", 1, "does not understand"),
    ] {
        let error = refusal(text);
        assert!(error.starts_with(&format!("web.cfg:{line}: ")), "{text:?} gives {error}");
        assert!(error.contains(what), "{text:?} gives {error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn h10_deep_lists_are_refused_and_not_followed() {
    let error = refusal(&format!("a = {}", "[".repeat(1_000_000)));
    assert!(error.contains("too many lists"), "{error}");
}

#[test]
fn h10_a_setting_of_the_wrong_sort_is_told_with_its_line() {
    let config = parse("name = ['web']\n\ndisk = 'x'\nirqs = [ 1,\n[ 2 ] ]\n");
    assert!(config.text("name").unwrap_err().to_string().starts_with("web.cfg:1: name is a list"));
    assert!(config.list("disk").unwrap_err().to_string().starts_with("web.cfg:3: disk is no list"));
    assert!(config.list("irqs").unwrap_err().to_string().starts_with("web.cfg:5: irqs has a list"));
}

#[test]
fn h10_a_file_that_is_missing_too_large_or_no_text_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("huge"), vec![b'\n'; 2 << 20]).unwrap();
    std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
    for (name, what) in [("none", "No such file"), ("huge", "larger than"), ("binary", "UTF-8"), ("", "directory")] {
        let error = XlConfig::read(&path(name)).unwrap_err().to_string();
        assert!(error.contains(what), "{name} gives {error}");
    }
}

proptest! {
    #[test]
    fn h10_any_text_is_understood_or_refused(text in r#"([a-z]{1,3}|["'\[\],=+;#\\\n\t x0-9é]){0,40}"#) {
        let _ = XlConfig::parse(Path::new("web.cfg"), &text);
    }

    #[test]
    fn h10_any_entry_is_understood_or_refused(
        entry in "(type=|virtio|,|device|mmio|target=|vdev=|phy:/|raw:|=|specification=virtio| |[0-9a-fé/:]){0,12}",
    ) {
        let _ = (disk::parse(&entry), virtio::parse(&entry));
    }

    #[test]
    fn a_text_reads_as_it_was_quoted(text in any::<String>()) {
        let escaped = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        let config = parse(&format!("a = \"{escaped}\""));
        prop_assert_eq!(config.text("a"), Ok(Some(&*text)));
    }
}
