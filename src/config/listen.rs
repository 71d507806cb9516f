//! How an address to listen on is written.

use std::collections::HashSet;
use std::path::Path;

use super::ListenAddress;
use super::codec::{Codec, Raw, make_absolute};

/// Longest path of a Unix domain socket on Linux, in bytes: `sun_path` less its closing NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Where to listen.
pub(super) struct Listen;

impl Codec for Listen {
    type Value = Vec<ListenAddress>;

    fn read(&self, raw: Raw<'_>, base: &Path) -> Result<Vec<ListenAddress>, String> {
        const ALLOWED: &str = "wants HOST:PORT or unix:PATH";
        let texts: Vec<&str> = match raw {
            // A comma separates in an environment variable, which can't be given twice.
            Raw::Text(text) => text.to_str().ok_or(ALLOWED)?.split(',').collect(),
            Raw::Texts(texts) => {
                texts.iter().map(|text| text.to_str()).collect::<Option<_>>().ok_or(ALLOWED)?
            }
            Raw::Toml(toml::Value::String(text)) => vec![text],
            Raw::Toml(toml::Value::Array(values)) => {
                values.iter().map(|value| value.as_str()).collect::<Option<_>>().ok_or(ALLOWED)?
            }
            Raw::Toml(_) => return Err(format!("{ALLOWED}, or a list of them")),
        };
        let single = texts.len() == 1;
        let mut addresses = Vec::new();
        let mut seen = HashSet::new();
        for text in texts {
            // Which one, unless the fault shows a single value anyway.
            let which = if single { String::new() } else { format!("{:?}: ", text.trim()) };
            let address = parse_listen(text.trim(), base)
                .map_err(|problem| format!("{which}{problem}; {ALLOWED}"))?;
            // Port 0 is another one each time.
            let any_port = matches!(address, ListenAddress::Tcp { port: 0, .. });
            if !any_port && !seen.insert(address.clone()) {
                return Err(format!("{address} is there twice"));
            }
            addresses.push(address);
        }
        if addresses.is_empty() {
            return Err(format!("{ALLOWED}, at least one"));
        }
        Ok(addresses)
    }

    fn write(&self, value: &Vec<ListenAddress>) -> toml::Value {
        value
            .iter()
            .map(|address| toml::Value::String(address.to_string()))
            .collect::<Vec<_>>()
            .into()
    }
}

fn parse_listen(text: &str, base: &Path) -> Result<ListenAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.contains('\0') {
            return Err("the path is missing".to_owned());
        }
        let path = make_absolute(Path::new(path), base)?;
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(format!(
                "the path {} is longer than the {MAX_SOCKET_PATH_BYTES} bytes that a socket may have",
                path.display()
            ));
        }
        return Ok(ListenAddress::Unix(path));
    }
    let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port (0 to 65535)"))?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner
            .strip_suffix(']')
            .filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
            .ok_or_else(|| format!("{host:?} is no IPv6 address"))?,
        None if host.contains(':') => {
            return Err("an IPv6 address stands in brackets, like [::1]:50061".to_owned());
        }
        None => host,
    };
    let plausible = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if host.is_empty() || !host.chars().all(plausible) {
        return Err(format!("{host:?} is no host"));
    }
    Ok(ListenAddress::Tcp { host: host.to_owned(), port })
}
