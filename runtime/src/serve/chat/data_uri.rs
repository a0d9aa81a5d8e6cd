//! Images in requests: `data:image/…;base64,…`. Pure.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Padding is optional: clients differ, and its absence is never ambiguous.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The image file in a data URI.
///
/// # Errors
/// A message, when the URL is not a base64 data URI of an image.
pub fn image_bytes(url: &str) -> Result<Vec<u8>, String> {
    let Some(rest) = strip_scheme(url) else {
        return Err(format!(
            "expected a data URI such as data:image/jpeg;base64,…, got {:?}; images are not fetched from URLs",
            url.chars().take(40).collect::<String>()
        ));
    };
    let Some((kind, data)) = rest.split_once(',') else {
        return Err(
            "the data URI has no comma before its data; expected data:image/jpeg;base64,…"
                .to_owned(),
        );
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
        return Err("the data URI is not base64; expected ;base64 before its comma".to_owned());
    }
    BASE64
        .decode(data.trim())
        .map_err(|error| format!("the base64 of the data URI is invalid: {error}"))
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
    fn only_data_uris_of_images_are_accepted() {
        for (url, expected) in [
            ("data:image/jpeg;base64,/9j/", Ok(b"\xff\xd8\xff".to_vec())),
            ("DATA:image/PNG;charset=x;base64,AQ", Ok(vec![1])),
            ("data:image/png;base64,AQ==", Ok(vec![1])),
            ("data:image/png;base64,", Ok(vec![])),
        ] {
            assert_eq!(image_bytes(url), expected, "{url}");
        }
        for (url, message) in [
            ("https://example.org/a.jpg", "images are not fetched"),
            ("file:///etc/passwd", "images are not fetched"),
            ("", "expected a data URI"),
            ("data:image/png;base64", "no comma"),
            ("data:text/plain;base64,AQ==", "type image/"),
            ("data:image/svg+xml,<svg/>", "not base64"),
            ("data:image/png;base64,@@", "is invalid"),
        ] {
            assert!(
                image_bytes(url).is_err_and(|error| error.contains(message)),
                "{url}"
            );
        }
    }

    proptest! {
        #[test]
        fn encoded_bytes_are_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let url = format!("data:image/jpeg;base64,{}", BASE64.encode(&bytes));
            prop_assert_eq!(image_bytes(&url), Ok(bytes));
        }

        #[test]
        fn no_url_panics(url in any::<String>()) {
            let _ = image_bytes(&url);
            let _ = image_bytes(&format!("data:{url}"));
        }
    }
}
