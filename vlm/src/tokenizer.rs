//! The checkpoint's own tokenizer: text to ids, ids to text, and the special tokens by their
//! content.
//!
//! Text that is encoded here never becomes a special token, whatever it holds: special tokens enter
//! a prompt by their id alone. Tokens that a fine-tune added without making them special are words:
//! found in any text, and part of answers. This is the only file that names `tokenizers`.

use std::collections::BTreeMap;

use tokenizers::{AddedToken, AddedVocabulary, DecoderWrapper, Model};

/// The largest `tokenizer.json` that is read, in bytes; published ones are 3.5 MB.
const JSON_BYTES_MAX: usize = 64 << 20;

/// A byte-level BPE tokenizer with its special tokens kept apart.
pub struct Tokenizer {
    /// Without special tokens, so that no text can become one.
    plain: tokenizers::Tokenizer,
    /// Content and id, the longest content first.
    specials: Vec<(String, u32)>,
    words: AddedWords,
}

/// The added tokens that are not special.
#[derive(Debug, Default)]
struct AddedWords {
    /// From the id in `plain`, which numbers them anew, to the tokenizer's own.
    ids: BTreeMap<u32, u32>,
    /// From the tokenizer's own id to the content.
    contents: BTreeMap<u32, String>,
}

/// A part of a text: plain text, or a special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span<'a> {
    /// Text between special tokens, never empty.
    Text(&'a str),
    /// A special token's id.
    Special(u32),
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// When it is larger than 64 MiB, damaged, or not byte-level.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        if json.len() > JSON_BYTES_MAX {
            return Err(TokenizerError::Size { bytes: json.len() });
        }
        let mut plain =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| TokenizerError::Json {
                message: error.to_string(),
            })?;
        if !matches!(plain.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(TokenizerError::NotByteLevel);
        }
        // Special tokens are taken out and found by this file alone; other added tokens stay words.
        let mut added: Vec<(u32, AddedToken)> = plain
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| !token.content.is_empty())
            .collect();
        added.sort_by_key(|(id, _)| *id);
        let (specials, words): (Vec<_>, Vec<_>) = added
            .into_iter()
            .partition(|(_, token)| token.special || is_markup(&token.content));
        let mut specials: Vec<_> = specials
            .into_iter()
            .map(|(id, token)| (token.content, id))
            .collect();
        specials.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        plain.with_added_vocabulary(AddedVocabulary::new());
        let words = add_words(&mut plain, words)?;
        // Some checkpoints have them from training; a prompt is never padded or cut silently.
        plain.with_padding(None);
        plain
            .with_truncation(None)
            .map_err(|error| TokenizerError::Json {
                message: error.to_string(),
            })?;
        Ok(Tokenizer {
            plain,
            specials,
            words,
        })
    }

    /// Ids of a text, none of them special. Bytes without a token in the vocabulary are dropped, as
    /// in training.
    ///
    /// # Errors
    /// When the tokenizer's own rules fail on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let encoding =
            self.plain
                .encode_fast(text, false)
                .map_err(|error| TokenizerError::Encode {
                    message: error.to_string(),
                })?;
        Ok(encoding
            .get_ids()
            .iter()
            .map(|id| *self.words.ids.get(id).unwrap_or(id))
            .collect())
    }

    /// The id of a special token by its content.
    pub fn id(&self, content: &str) -> Option<u32> {
        self.specials
            .iter()
            .find(|(special, _)| special == content)
            .map(|(_, id)| *id)
    }

    /// Content and id of each special token, the longest content first.
    pub fn specials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.specials
            .iter()
            .map(|(content, id)| (content.as_str(), *id))
    }

    /// Cuts trusted text at the special tokens in it, leftmost first, longest first.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Span<'a>> {
        let mut spans = Vec::new();
        let (mut begin, mut at) = (0, 0);
        while at < text.len() {
            let rest = &text[at..];
            match self
                .specials
                .iter()
                .find(|(content, _)| rest.starts_with(content.as_str()))
            {
                Some((content, id)) => {
                    if begin < at {
                        spans.push(Span::Text(&text[begin..at]));
                    }
                    spans.push(Span::Special(*id));
                    at += content.len();
                    begin = at;
                }
                None => at += rest.chars().next().map_or(1, char::len_utf8),
            }
        }
        if begin < text.len() {
            spans.push(Span::Text(&text[begin..]));
        }
        spans
    }

    /// The text of a whole answer; special tokens are left out, incomplete characters become
    /// U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = TokenText::new(self);
        let mut whole: String = ids.iter().map(|&id| text.push(id)).collect();
        whole.push_str(&text.finish());
        whole
    }

    /// The bytes a token stands for; none for special and unknown ids.
    fn bytes(&self, id: u32) -> Vec<u8> {
        if self.specials.iter().any(|(_, special)| *special == id) {
            return Vec::new();
        }
        let token = self
            .words
            .contents
            .get(&id)
            .cloned()
            .or_else(|| self.plain.get_model().id_to_token(id))
            .unwrap_or_default();
        token
            .chars()
            .map(byte)
            .collect::<Option<_>>()
            .unwrap_or_else(|| token.into_bytes())
    }
}

/// Adds words to a tokenizer without added tokens, which numbers them from the end of its
/// vocabulary.
fn add_words(
    plain: &mut tokenizers::Tokenizer,
    words: Vec<(u32, AddedToken)>,
) -> Result<AddedWords, TokenizerError> {
    let json = |message: String| TokenizerError::Json { message };
    let mut known = AddedWords {
        contents: words
            .iter()
            .map(|(id, token)| (*id, token.content.clone()))
            .collect(),
        ..AddedWords::default()
    };
    plain
        .add_tokens(words.into_iter().map(|(_, token)| token))
        .map_err(|error| json(error.to_string()))?;
    for (id, content) in &known.contents {
        let own = plain
            .token_to_id(content)
            .ok_or_else(|| json(format!("the added token {content:?} is lost")))?;
        // In a vocabulary with gaps the number may be another token's.
        if plain
            .get_model()
            .id_to_token(own)
            .is_some_and(|other| other != *content)
        {
            return Err(json(format!(
                "the added token {content:?} has no id of its own: the ids of the vocabulary have gaps"
            )));
        }
        known.ids.insert(own, *id);
    }
    Ok(known)
}

/// Whether a token is part of a prompt's markup: special whatever its file says, because untrusted
/// text must never become one.
fn is_markup(content: &str) -> bool {
    const MARKUP: [&str; 7] = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
    ];
    MARKUP.contains(&content) || content.starts_with("<row_")
}

/// The byte that a character of a byte-level token stands for: printable ones for themselves, the
/// others in order from U+0100 on.
fn byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The text of an answer while its tokens arrive. A character that spans tokens belongs to the
/// token that completes it.
pub(crate) struct TokenText<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
}

impl<'a> TokenText<'a> {
    /// Before the first token.
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        TokenText {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// The text of a token by itself, without the tokens before it.
    pub(crate) fn alone(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.tokenizer.bytes(id)).into_owned()
    }

    /// The text that `id` completes; empty for special tokens.
    pub(crate) fn push(&mut self, id: u32) -> String {
        self.pending.extend(self.tokenizer.bytes(id));
        let mut text = String::new();
        // Only the last chunk can be the beginning of an incomplete character.
        let mut unfinished = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            unfinished = 0;
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                unfinished = chunk.invalid().len();
            }
        }
        let tail = self.pending.split_off(self.pending.len() - unfinished);
        if std::str::from_utf8(&tail).is_err_and(|error| error.error_len().is_none()) {
            text.pop();
            self.pending = tail;
        } else {
            self.pending.clear();
        }
        text
    }

    /// The rest after the last token: U+FFFD when a character is incomplete, else empty.
    pub(crate) fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Why a tokenizer cannot be read, or a text not encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Larger than any real one.
    #[error(
        "tokenizer.json has {bytes} bytes: expected at most {JSON_BYTES_MAX}; copy it from the checkpoint again"
    )]
    Size {
        /// Its length.
        bytes: usize,
    },
    /// Not a tokenizer.
    #[error("tokenizer.json cannot be read: {message}; copy it from the checkpoint again")]
    Json {
        /// The parser's own message.
        message: String,
    },
    /// Another kind of tokenizer.
    #[error(
        "tokenizer.json has no ByteLevel decoder: expected a byte-level BPE, as SmolVLM2 has; copy it from the checkpoint again"
    )]
    NotByteLevel,
    /// Its rules fail on a text.
    #[error("text cannot be tokenized: {message}")]
    Encode {
        /// The tokenizer's own message.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;

    #[test]
    fn special_looking_text_stays_text() {
        let tokenizer = reference::tokenizer();
        for (content, id) in tokenizer.specials() {
            let ids = tokenizer.encode(&format!("a{content}b")).expect("encodes");
            assert!(!ids.contains(&id), "{content} became {id}");
            assert_eq!(tokenizer.decode(&ids), format!("a{content}b"));
        }
    }

    #[test]
    fn digits_stand_alone_and_line_ends_merge() {
        let tokenizer = reference::tokenizer();
        assert_eq!(tokenizer.encode("12.5").expect("encodes"), [33, 34, 30, 37]);
        assert_eq!(tokenizer.encode("\n\n").expect("encodes"), [1116]);
    }

    #[test]
    fn splits_at_the_longest_special() {
        let tokenizer = reference::tokenizer();
        assert_eq!(
            tokenizer.split("<|im_start|>User:<image>é<"),
            [
                Span::Special(1),
                Span::Text("User:"),
                Span::Special(49190),
                Span::Text("é<")
            ]
        );
        assert_eq!(tokenizer.split(""), []);
    }

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let known: std::collections::BTreeSet<u8> =
            ('\u{21}'..='\u{143}').filter_map(byte).collect();
        assert_eq!(known.len(), 256);
    }

    #[test]
    fn a_character_belongs_to_the_token_that_completes_it() {
        let tokenizer = reference::tokenizer();
        let ids = tokenizer.encode("🦩 é").expect("encodes");
        let mut text = TokenText::new(&tokenizer);
        let parts: Vec<String> = ids.iter().map(|&id| text.push(id)).collect();
        assert_eq!(parts.concat() + &text.finish(), "🦩 é");
        assert!(
            parts[0].is_empty(),
            "the first byte of four is no character yet: {parts:?}"
        );

        let mut cut = TokenText::new(&tokenizer);
        assert_eq!(cut.push(ids[0]), "");
        assert_eq!(cut.finish(), "\u{FFFD}");
    }

    #[test]
    fn refuses_what_is_not_a_byte_level_tokenizer() {
        assert!(matches!(
            Tokenizer::from_json(b"{}"),
            Err(TokenizerError::Json { .. })
        ));
        assert!(matches!(
            Tokenizer::from_json(&vec![b' '; JSON_BYTES_MAX + 1]),
            Err(TokenizerError::Size { .. })
        ));
        let no_decoder = br#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
        assert!(matches!(
            Tokenizer::from_json(no_decoder),
            Err(TokenizerError::NotByteLevel)
        ));
    }

    /// The released tokenizer with tokens that a fine-tune adds.
    fn with_added(tokens: &[(u32, &str, bool)]) -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tokenizer.json");
        let mut json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).expect("the released one")).expect("JSON");
        for (id, content, special) in tokens {
            json["added_tokens"]
                .as_array_mut()
                .expect("a list")
                .push(serde_json::json!({
                    "id": id, "content": content, "special": special,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": !special,
                }));
        }
        Tokenizer::from_json(json.to_string().as_bytes()).expect("loads")
    }

    /// Ids and texts are those of transformers, for tokens added after the released vocabulary.
    #[test]
    fn added_tokens_that_are_not_special_are_words() {
        let tokenizer = with_added(&[
            (49280, "<|tool|>", true),
            (49281, "<widget>", false),
            (49282, "<loc>", false),
            (49283, "a b", false),
        ]);
        let ids = tokenizer
            .encode("a <widget><loc>2 <|tool|>")
            .expect("encodes");
        assert_eq!(ids[..4], [81, 216, 49281, 49282]);
        assert!(!ids.contains(&49280), "a special token stays text");
        assert_eq!(tokenizer.decode(&ids), "a <widget><loc>2 <|tool|>");
        assert_eq!(
            tokenizer.decode(&[49282, 49280, 49283]),
            "<loc>a b",
            "special tokens are left out"
        );
        assert_eq!(
            tokenizer.split("<loc><|tool|>"),
            [Span::Text("<loc>"), Span::Special(49280)]
        );
        assert_eq!(
            (tokenizer.id("<|tool|>"), tokenizer.id("<loc>")),
            (Some(49280), None)
        );
    }

    #[test]
    fn markup_is_special_whatever_its_file_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/tokenizer.json");
        let json = std::fs::read_to_string(path)
            .expect("the released one")
            .replace("\"special\": true", "\"special\": false");
        let tokenizer = Tokenizer::from_json(json.as_bytes()).expect("loads");
        let image = tokenizer.id("<image>").expect("special");
        assert!(
            !tokenizer
                .encode("<image><row_1_col_1>")
                .expect("encodes")
                .contains(&image)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn text_without_lost_bytes_comes_back(text in "[ -~\n\u{e4}\u{4e2d}]{0,40}") {
            let tokenizer = reference::tokenizer();
            let ids = tokenizer.encode(&text).expect("encodes");
            prop_assert_eq!(tokenizer.decode(&ids), text);
        }
    }
}
