//! URLs of brokers, pools and cameras: the part of RFC 3986 that they need.

use std::path::PathBuf;

use toml::de::DeValue;

use super::diagnostics::Mismatch;
use super::value::{Checked, quote, string};
use super::{MqttScheme, MqttUrl, Source};

/// Longest URL, in bytes.
const URL_MAX: usize = 2048;

/// `scheme://[user[:password]@]host[:port][/rest]`.
struct Url<'u> {
    scheme: &'u str,
    user: Option<&'u str>,
    /// Without the brackets of an IPv6 address.
    host: &'u str,
    port: Option<u16>,
    /// From the first `/`, `?` or `#` on.
    rest: &'u str,
}

/// `None` when the text is not a URL with a host.
fn split(text: &str) -> Option<Url<'_>> {
    let (scheme, after) = text.split_once("://")?;
    let (authority, rest) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
    let (user, address) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(user, address)| (Some(user), address));
    let (host, port) = match address.strip_prefix('[') {
        Some(ipv6) => {
            let (host, port) = ipv6.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':')?)
                },
            )
        }
        None => address
            .split_once(':')
            .map_or((address, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok().filter(|port| *port > 0)?)
        }
        Some(_) => return None,
        None => None,
    };
    let is_name = |host: &str| {
        !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._~%:".contains(&byte))
    };
    let printable = |text: &str| text.chars().all(|c| !c.is_whitespace() && !c.is_control());
    (text.len() <= URL_MAX && is_name(host) && printable(text)).then_some(Url {
        scheme,
        user,
        host,
        port,
        rest,
    })
}

impl std::str::FromStr for MqttUrl {
    type Err = String;

    /// As for `[mqtt] url`; for a broker named on the command line.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        mqtt(&DeValue::String(text.into())).map_err(
            |Mismatch {
                 found,
                 expected,
                 help,
             }| format!("found {found}, expected {expected}; {help}"),
        )
    }
}

/// A broker's URL: `mqtt`, `mqtts`, `ws` or `wss`, without user or password.
pub(super) fn mqtt(value: &DeValue<'_>) -> Checked<MqttUrl> {
    const EXPECTED: &str = "mqtt://, mqtts://, ws:// or wss://, host and port";
    let text = string(value, EXPECTED)?;
    let refuse = |help: &str| Mismatch::new(quote(text), EXPECTED, help);
    let url = split(text).ok_or_else(|| refuse("write it as \"mqtt://192.0.2.1:1883\""))?;
    let (scheme, default_port) = match url.scheme {
        "mqtt" => (MqttScheme::Tcp, 1883),
        "mqtts" => (MqttScheme::Tls, 8883),
        "ws" => (MqttScheme::Websocket, 80),
        "wss" => (MqttScheme::WebsocketTls, 443),
        _ => return Err(refuse("write mqtt:// for plain TCP, mqtts:// for TLS")),
    };
    if url.user.is_some() {
        return Err(refuse(
            "name the files that hold them instead: username-file and password-file",
        ));
    }
    let path = match scheme {
        MqttScheme::Tcp | MqttScheme::Tls if url.rest.trim_end_matches('/').is_empty() => {
            String::new()
        }
        MqttScheme::Tcp | MqttScheme::Tls => {
            return Err(refuse(
                "remove what follows host and port: only ws:// and wss:// have a path",
            ));
        }
        MqttScheme::Websocket | MqttScheme::WebsocketTls if url.rest.is_empty() => "/".to_owned(),
        MqttScheme::Websocket | MqttScheme::WebsocketTls => url.rest.to_owned(),
    };
    Ok(MqttUrl {
        scheme,
        host: url.host.to_owned(),
        port: url.port.unwrap_or(default_port),
        path,
    })
}

/// A pool's base URL: `http` or `https`, without user, password or query; the trailing slash is
/// dropped.
pub(super) fn pool(value: &DeValue<'_>) -> Checked<String> {
    const EXPECTED: &str = "the base URL of an OpenAI-compatible server";
    let text = string(value, EXPECTED)?;
    let refuse = |help: &str| Mismatch::new(quote(text), EXPECTED, help);
    let url = split(text)
        .filter(|url| matches!(url.scheme, "http" | "https"))
        .ok_or_else(|| refuse("write it as \"https://api.example.org/v1\""))?;
    if url.user.is_some() {
        return Err(refuse(
            "name the file that holds the key instead: api-key-file",
        ));
    }
    if url.rest.contains(['?', '#']) {
        return Err(refuse(
            "remove the query: /chat/completions is added to the URL",
        ));
    }
    let base = text.trim_end_matches('/');
    match base.strip_suffix("/chat/completions") {
        Some(base) => Err(refuse(&format!(
            "write {base:?}: /chat/completions is added to it"
        ))),
        None => Ok(base.to_owned()),
    }
}

/// A camera's source.
pub(super) fn source(value: &DeValue<'_>) -> Checked<Source> {
    const EXPECTED: &str = "rtsp://, file:///clip.mp4 or dir:///frames";
    let text = string(value, EXPECTED)?;
    let refuse = |help: &str| Mismatch::new(quote(text), EXPECTED, help);
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| refuse("start it with rtsp://, file:// or dir://"))?;
    let path = |kind: &str| match rest {
        "" => Err(refuse(&format!("write the path of the {kind} after ://"))),
        _ if rest.contains('\0') || rest.len() > 4096 => {
            Err(refuse("write a path of at most 4096 bytes"))
        }
        path => Ok(PathBuf::from(path)),
    };
    match scheme {
        "dir" => path("folder").map(Source::Folder),
        "file" => path("clip").map(Source::File),
        "rtsp" | "rtsps" if split(text).is_some() => Ok(Source::Rtsp(text.to_owned())),
        "rtsp" | "rtsps" => Err(refuse(
            "write it as \"rtsp://192.0.2.7:554/stream2\"; escape / @ and : in a password (%2F %40 %3A)",
        )),
        "v4l2" => Err(refuse(
            "USB and CSI cameras are not built in yet: serve the camera over RTSP (for example with MediaMTX) and name that URL",
        )),
        "http" | "https" => Err(refuse(
            "cameras over HTTP are not built in yet: use the camera's RTSP stream",
        )),
        _ => Err(refuse("start it with rtsp://, file:// or dir://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[test]
    fn brokers() {
        let url = |scheme, host: &str, port, path: &str| MqttUrl {
            scheme,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        };
        for (text, expected) in [
            (
                "mqtt://127.0.0.1:1884",
                url(MqttScheme::Tcp, "127.0.0.1", 1884, ""),
            ),
            ("mqtt://broker/", url(MqttScheme::Tcp, "broker", 1883, "")),
            (
                "mqtts://broker.example.org",
                url(MqttScheme::Tls, "broker.example.org", 8883, ""),
            ),
            (
                "ws://broker:9001",
                url(MqttScheme::Websocket, "broker", 9001, "/"),
            ),
            (
                "wss://broker/mqtt",
                url(MqttScheme::WebsocketTls, "broker", 443, "/mqtt"),
            ),
            ("mqtt://[::1]:1883", url(MqttScheme::Tcp, "::1", 1883, "")),
        ] {
            assert_eq!(mqtt(&value(text)), Ok(expected), "{text}");
        }
        for text in [
            "",
            "broker",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://a:0",
            "mqtt://a:65536",
            "mqtt://a:+1",
            "mqtt://a/b",
            "http://a",
            "mqtt://[::1",
            "mqtt://a b",
        ] {
            assert!(mqtt(&value(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn passwords_are_refused_and_not_repeated() {
        for mismatch in [
            mqtt(&value("mqtt://me:secret@broker")).err(),
            pool(&value("https://me:secret@api/v1")).err(),
        ] {
            let mismatch = mismatch.expect("refused");
            assert!(!format!("{mismatch:?}").contains("secret"), "{mismatch:?}");
            assert!(mismatch.help.contains("-file"), "{mismatch:?}");
        }
    }

    #[test]
    fn pools() {
        assert_eq!(
            pool(&value("https://api.example.org/v1/")),
            Ok("https://api.example.org/v1".to_owned())
        );
        assert_eq!(
            pool(&value("http://127.0.0.1:8080/v1")),
            Ok("http://127.0.0.1:8080/v1".to_owned())
        );
        for text in [
            "api.example.org/v1",
            "ftp://a/v1",
            "https://",
            "https://a/v1?key=1",
            "https://a/v1/chat/completions",
        ] {
            assert!(pool(&value(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn sources() {
        for (text, expected) in [
            ("dir:///frames", Source::Folder("/frames".into())),
            ("dir://demo/frames", Source::Folder("demo/frames".into())),
            ("file:///a clip.mp4", Source::File("/a clip.mp4".into())),
            (
                "rtsp://me:secret@192.0.2.7:554/s?x=1",
                Source::Rtsp("rtsp://me:secret@192.0.2.7:554/s?x=1".into()),
            ),
        ] {
            assert_eq!(source(&value(text)), Ok(expected), "{text}");
        }
        for text in [
            "",
            "frames",
            "dir://",
            "rtsp://",
            "v4l2:///dev/video0",
            "http://cam/mjpg",
            "gopher://x",
        ] {
            assert!(source(&value(text)).is_err(), "{text}");
        }
    }
}
