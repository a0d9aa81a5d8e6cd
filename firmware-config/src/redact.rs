//! User names, passwords and queries of URLs, kept out of logs, events and error texts.

use std::borrow::Cow;

/// `text` with the user information and the query of every URL in it replaced:
/// `rtsp://me:secret@host/?key=secret` becomes `rtsp://***@host/?***`.
///
/// A password with an unescaped `/` or `@` does not make a valid URL, but cameras are configured
/// so; everything up to the last `@` before white space is therefore taken for user information.
/// That may hide a host name, but never shows a password.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut rest = text;
    let mut hidden = String::new();
    while let Some(scheme_end) = rest.find("://").map(|at| at + 3) {
        let (before, url) = rest.split_at(scheme_end);
        let (url, after) = url.split_at(url.find(char::is_whitespace).unwrap_or(url.len()));
        hidden.push_str(before);
        let url = match url.rfind('@') {
            Some(at) => {
                hidden.push_str("***");
                &url[at..]
            }
            None => url,
        };
        match url.split_once('?') {
            Some((url, _)) => {
                hidden.push_str(url);
                hidden.push_str("?***");
            }
            None => hidden.push_str(url),
        }
        rest = after;
    }
    if hidden.is_empty() {
        return Cow::Borrowed(text);
    }
    hidden.push_str(rest);
    Cow::Owned(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_information_is_hidden_in_every_url_of_a_text() {
        for (text, expected) in [
            ("no url at all", "no url at all"),
            ("rtsp://192.0.2.7/stream2", "rtsp://192.0.2.7/stream2"),
            (
                "rtsp://me:secret@192.0.2.7/stream2",
                "rtsp://***@192.0.2.7/stream2",
            ),
            (
                "two: rtsp://a:b@c/d and 'mqtt://e:f@g' end",
                "two: rtsp://***@c/d and 'mqtt://***@g' end",
            ),
            (
                "rtsp://me:p/w@d@host/x: Connection refused",
                "rtsp://***@host/x: Connection refused",
            ),
            ("rtsp://me:it's\"so\"@host/x", "rtsp://***@host/x"),
            ("://@", "://***@"),
            ("http://h/v1?api_key=secret x", "http://h/v1?*** x"),
            ("rtsp://a:b?c@d/e?f=g", "rtsp://***@d/e?***"),
        ] {
            assert_eq!(redact(text), expected, "{text}");
        }
    }
}
