//! A device by arguments: the keys of an entry, as `KEY=VALUE` each.

use anyhow::{Context, anyhow, bail};
use toml::{Table, Value};

use crate::model::Model;

/// The device that these arguments describe, checked as far as it can be without looking at the host.
///
/// # Errors
/// One of them makes no sense, or no host could serve what they say together.
pub(super) fn model(kind: &str, arguments: &[String]) -> anyhow::Result<Model> {
    let parsed = Model::parse(kind, table(arguments)?).with_context(|| format!("{kind} is no kind of device"))?;
    let model = parsed.map_err(|error| anyhow!(one_line(&error)))?;
    model.check()?;
    Ok(model)
}

fn table(arguments: &[String]) -> anyhow::Result<Table> {
    let mut table = Table::new();
    for argument in arguments {
        let (key, text) =
            argument.split_once('=').with_context(|| format!("{argument:?} is no KEY=VALUE, such as queues=2"))?;
        if table.insert(key.to_owned(), value(text)).is_some() {
            bail!("{key} is given twice");
        }
    }
    Ok(table)
}

/// Paths and names are no TOML without their quotes, so that nobody has to write those twice over.
fn value(text: &str) -> Value {
    text.parse().unwrap_or_else(|_plain| Value::String(text.to_owned()))
}

/// The reader's sentence, with the key that it is about.
fn one_line(error: &toml::de::Error) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, arguments: &[&str]) -> Result<Model, String> {
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        model(kind, &arguments).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn values_are_toml_or_plain_text() {
        let Ok(Model::Disk(disk)) = parse("disk", &["image=/srv/my disk=1.img", "read_only=true", "serial='12'"])
        else {
            panic!("a disk")
        };
        assert_eq!(disk.image.to_str(), Some("/srv/my disk=1.img"));
        assert!(disk.read_only);
        assert_eq!(
            parse("net", &["mac=00:16:3e:01:02:03", "queues=2"]).unwrap().exclusive(),
            ["address 00:16:3e:01:02:03"]
        );
        let console = parse("console", &["sink=null", r#"port=[{name="log",sink="file",path="/tmp/log"}]"#]).unwrap();
        assert_eq!(console.exclusive(), ["file /tmp/log", "file /tmp/log.1"]);
        assert_eq!(parse("rng", &[]).unwrap().kind(), "rng");
    }

    #[test]
    fn h10_mistakes_are_told_with_their_key() {
        for (kind, arguments, what) in [
            ("disk", &["image"][..], "\"image\" is no KEY=VALUE"),
            ("disk", &["image=/a", "image=/b"], "image is given twice"),
            ("disk", &["imgae=/a"], "unknown field `imgae`, expected one of `image`"),
            ("disk", &["image=/a", "queues=x"], "expected u16 in `queues`"),
            ("disk", &["image=/a", "queues=17"], "17 queues"),
            ("disk", &[], "image = "),
            ("disk", &["image=/a", "serial=0x10"], "expected a string in `serial`"),
            ("net", &["mac=00:16"], "mac = \"00:16\" is no address"),
            ("console", &["port=[{name='a',sink='tty'}]"], "unknown variant `tty`"),
            ("rng", &["=1"], "unknown field ``"),
            ("vsock", &["socket=relative"], "relative"),
            ("nte", &[], "nte is no kind"),
        ] {
            let error = parse(kind, arguments).unwrap_err();
            assert!(error.contains(what) && !error.contains('\n'), "{arguments:?} gives {error:?}");
        }
    }
}
