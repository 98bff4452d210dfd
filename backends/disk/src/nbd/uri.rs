//! The address of an export: `nbd://host[:port]/export` or `nbd+unix:///export?socket=/path`, as the NBD project's page on
//! URIs has them.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The port that is NBD's by IANA's list.
const DEFAULT_PORT: u16 = 10809;

/// Bytes that the protocol allows a name of an export (NBD, "Values: maximum string length").
const LONGEST_NAME: usize = 4096;

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    written: String,
    pub(super) server: Server,
    /// The export's name, which may be empty: the server's default one.
    pub(super) export: Vec<u8>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Why an image that looks like an address is none.
#[derive(Debug, thiserror::Error)]
#[error("The image {image} is no address of an NBD export: {what}")]
pub struct AddressError {
    image: String,
    what: &'static str,
}

const SCHEMES: [&str; 6] = ["nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock"];

impl Address {
    /// Whether `image` is meant as an address, and not as a path. A path from the root never is.
    pub fn is_meant(image: &Path) -> bool {
        image.to_str().and_then(|image| image.split_once(':')).is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
    }

    /// Reads an address.
    ///
    /// # Errors
    /// It is none, or one of a way that is not served; the message says what was expected.
    pub fn parse(image: &Path) -> Result<Self, AddressError> {
        let written = image.display().to_string();
        read(&written)
            .map(|(server, export)| Self { written: written.clone(), server, export })
            .map_err(|what| AddressError { image: written, what })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn read(written: &str) -> Result<(Server, Vec<u8>), &'static str> {
    let (scheme, rest) = written
        .split_once("://")
        .ok_or("it has no :// behind nbd; write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=/PATH")?;
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decoded(export)?;
    if export.len() > LONGEST_NAME {
        return Err("the export's name is longer than 4096 bytes");
    }
    let server = match scheme {
        "nbd" if query.is_some() => Err("nbd:// takes nothing behind a ?"),
        "nbd" => tcp(authority),
        "nbd+unix" if !authority.is_empty() => {
            Err("nbd+unix has no host; write three slashes: nbd+unix:///EXPORT?socket=/PATH")
        }
        "nbd+unix" => unix(query),
        "nbds" | "nbds+unix" => Err(
            "TLS is not spoken here; use a private network, or let a tunnel (stunnel, WireGuard, ssh) carry nbd:// or nbd+unix://",
        ),
        _ => Err("only nbd:// and nbd+unix:// are served"),
    }?;
    Ok((server, export))
}

fn tcp(authority: &str) -> Result<Server, &'static str> {
    const PORT: &str = "its port is no number from 1 to 65535";
    if authority.contains('@') {
        return Err("a user before the host is of use with TLS only, which is not spoken here");
    }
    // An IPv6 address has colons of its own, and so stands in brackets (RFC 3986 §3.2.2).
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the bracket of its IPv6 address is not closed")?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(PORT)?) };
            (host, port)
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("it names no host; for a unix socket write nbd+unix:///EXPORT?socket=/PATH");
    }
    let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse().ok().filter(|port| *port > 0).ok_or(PORT))?;
    let host = String::from_utf8(decoded(host)?).map_err(|_not_text| "its host is no text")?;
    Ok(Server::Tcp { host, port })
}

fn unix(query: Option<&str>) -> Result<Server, &'static str> {
    let path = query.and_then(|query| query.strip_prefix("socket=")).ok_or("it does not end in ?socket=/PATH")?;
    let path = PathBuf::from(OsString::from_vec(decoded(path)?));
    if path.is_absolute() { Ok(Server::Unix(path)) } else { Err("its socket is no path from the root") }
}

/// Bytes of which some are written as `%` and two hexadecimal digits (RFC 3986 §2.1).
fn decoded(text: &str) -> Result<Vec<u8>, &'static str> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err("behind a % it has no two hexadecimal digits");
                };
                u8::try_from(16 * high + low).unwrap_or_default()
            }
            byte => byte,
        });
    }
    if decoded.contains(&0) { Err("it holds a byte of zero") } else { Ok(decoded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Server {
        Server::Tcp { host: host.into(), port }
    }

    #[test]
    fn addresses_are_read_as_the_standard_has_them() {
        let read = [
            ("nbd://store", tcp("store", 10809), ""),
            ("nbd://store/", tcp("store", 10809), ""),
            ("nbd://store:10810/web", tcp("store", 10810), "web"),
            ("nbd://192.0.2.7/vg0/web%20root", tcp("192.0.2.7", 10809), "vg0/web root"),
            ("nbd://[2001:db8::7]:10810/web", tcp("2001:db8::7", 10810), "web"),
            ("nbd://[::1]/web", tcp("::1", 10809), "web"),
            ("nbd+unix:///web?socket=/run/web.sock", Server::Unix("/run/web.sock".into()), "web"),
            ("nbd+unix:///?socket=/run/a%3Fb", Server::Unix("/run/a?b".into()), ""),
            ("nbd+unix://?socket=/run/web.sock", Server::Unix("/run/web.sock".into()), ""),
        ];
        for (written, server, export) in read {
            let address = Address::parse(Path::new(written)).unwrap();
            assert_eq!((&address.server, &address.export[..]), (&server, export.as_bytes()), "{written}");
            assert_eq!(address.to_string(), written);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_is_wrong() {
        let long = format!("nbd://h/{}", "a".repeat(4097));
        let refused = [
            ("nbds://store/web", "tunnel"),
            ("nbds+unix:///web?socket=/a", "tunnel"),
            ("nbd+vsock://2/web", "only nbd://"),
            ("nbd:store", "nbd://HOST"),
            ("nbd:///web", "nbd+unix:///"),
            ("nbd://me@store/web", "TLS"),
            ("nbd://store:0/web", "port"),
            ("nbd://store:65536/web", "port"),
            ("nbd://[::1/web", "bracket"),
            ("nbd://[::1]10809/web", "port"),
            ("nbd://store/web?tls=1", "behind a ?"),
            ("nbd+unix://store/web?socket=/a", "three slashes"),
            ("nbd+unix:///web", "?socket="),
            ("nbd+unix:///web?socket=run/a", "from the root"),
            ("nbd://store/%zz", "hexadecimal"),
            ("nbd://store/%4", "hexadecimal"),
            ("nbd://store/a%00b", "zero"),
            (&long, "longer than 4096"),
        ];
        for (written, words) in refused {
            let error = Address::parse(Path::new(written)).unwrap_err().to_string();
            assert!(error.contains(words), "{written}: {error}");
        }
    }

    #[test]
    fn a_path_is_no_address_whatever_is_in_it() {
        for path in ["/srv/nbd:/web", "/dev/nbd0", "nbd0", "nbdkit:x"] {
            assert!(!Address::is_meant(Path::new(path)), "{path}");
        }
        for address in ["nbd://a/b", "nbds://a/b", "nbd+unix:///a?socket=/b", "nbd:a"] {
            assert!(Address::is_meant(Path::new(address)), "{address}");
        }
    }
}
