//! Pictures in requests: `data:image/…;base64,…`. Pure.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Padding is optional: clients disagree about it, and its absence is never ambiguous.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes of the picture file in a data URI.
///
/// # Errors
/// In words, when the URL is no base64 data URI of an image.
pub fn picture_bytes(url: &str) -> Result<Vec<u8>, String> {
    let Some(rest) = strip_scheme(url) else {
        return Err(format!(
            "expected a data URI such as data:image/jpeg;base64,…, got {:?}; pictures are not fetched from elsewhere",
            url.chars().take(40).collect::<String>()
        ));
    };
    let Some((kind, data)) = rest.split_once(',') else {
        return Err("the data URI has no comma before its data".to_owned());
    };
    let kind = kind.to_ascii_lowercase();
    let mut parameters = kind.split(';');
    let media_type = parameters.next().unwrap_or_default();
    if !media_type.starts_with("image/") {
        return Err(format!(
            "expected a data URI of type image/…, got {media_type:?}"
        ));
    }
    if !parameters.any(|parameter| parameter.trim() == "base64") {
        return Err("the data URI is not base64".to_owned());
    }
    BASE64
        .decode(data.trim())
        .map_err(|error| format!("the data URI's base64 is broken: {error}"))
}

fn strip_scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_at_checked(5)?;
    scheme.eq_ignore_ascii_case("data:").then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn data_uris_of_images_are_taken_and_nothing_else() {
        for (url, expected) in [
            ("data:image/jpeg;base64,/9j/", Ok(b"\xff\xd8\xff".to_vec())),
            ("DATA:image/PNG;charset=x;base64,AQ", Ok(vec![1])),
            ("data:image/png;base64,AQ==", Ok(vec![1])),
            ("data:image/png;base64,", Ok(vec![])),
        ] {
            assert_eq!(picture_bytes(url), expected, "{url}");
        }
        for (url, message) in [
            ("https://example.org/a.jpg", "pictures are not fetched"),
            ("file:///etc/passwd", "pictures are not fetched"),
            ("", "expected a data URI"),
            ("data:image/png;base64", "no comma"),
            ("data:text/plain;base64,AQ==", "type image/"),
            ("data:image/svg+xml,<svg/>", "not base64"),
            ("data:image/png;base64,@@", "base64 is broken"),
        ] {
            assert!(
                picture_bytes(url).is_err_and(|error| error.contains(message)),
                "{url}"
            );
        }
    }

    proptest! {
        #[test]
        fn bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let url = format!("data:image/jpeg;base64,{}", BASE64.encode(&bytes));
            prop_assert_eq!(picture_bytes(&url), Ok(bytes));
        }

        #[test]
        fn no_url_makes_it_panic(url in any::<String>()) {
            let _ = picture_bytes(&url);
            let _ = picture_bytes(&format!("data:{url}"));
        }
    }
}
