//! Names of models on a hub.

use std::fmt;

/// Longest id that the hub allows.
const ID_BYTES_MAX: usize = 96;

/// `owner/model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// Person or organisation.
    pub owner: String,
    /// Model.
    pub model: String,
}

impl HubId {
    /// Parses an id by the hub's own rules; anything else is a path.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |part: &str| {
            let is_edge = |c: char| c == '-' || c == '.';
            let chars = part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            !part.is_empty() && chars && !part.starts_with(is_edge) && !part.ends_with(is_edge)
        };
        let (owner, model) = text.split_once('/')?;
        let is_id = is_plain(owner)
            && is_plain(model)
            && !text.contains("--")
            && !text.contains("..")
            && text.len() <= ID_BYTES_MAX;
        is_id.then(|| HubId {
            owner: owner.into(),
            model: model.into(),
        })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinguished_from_paths() {
        for (text, is_id) in [
            ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", true),
            ("a/b_c.d", true),
            ("models/a/b", false),
            ("/models/a", false),
            ("./model", false),
            ("../model", false),
            ("model", false),
            ("a/b--c", false),
            ("a/b..c", false),
            ("a/b/", false),
            ("a/ b", false),
            ("größe/modell", false),
            (&format!("a/{}", "b".repeat(95)), false),
        ] {
            assert_eq!(HubId::parse(text).is_some(), is_id, "{text}");
        }
    }
}
