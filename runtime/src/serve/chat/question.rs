//! A chat request, checked and turned into a request to the model.

use serde_json::Value;
use vlm::{Content, PIXELS_MAX, Picture, Request, Role, Split, Turn};

use super::data_uri;
use super::schema::{self, EnumObject};
use crate::openai::ApiError;
use crate::openai::request::{self, ChatRequest, ImageUrl, Message, MessageContent};

/// The largest request body that is read, in bytes: images are inside it.
pub const BODY_BYTES_MAX: usize = 32 << 20;

const MESSAGES_MAX: usize = 256;
const IMAGES_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 256 << 10;
/// The default of `egret ask`.
const MAX_TOKENS_DEFAULT: u64 = 128;
/// Above any context length: the model ends the answer at its own limit first.
const MAX_TOKENS_MAX: u64 = 32 << 10;
const TOP_LOGPROBS_MAX: u64 = 20;

/// Fields that would change the answer, and are not supported: refused unless they are empty, zero,
/// or ask for the default.
const UNSUPPORTED: [&str; 12] = [
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "audio",
    "stop",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "web_search_options",
    "prediction",
    "guided_json",
];

/// A request that can be put to the model.
#[derive(Debug, Clone)]
pub struct ChatQuestion {
    /// The model that is to answer.
    pub model: Option<String>,
    /// Ordered fallback; empty when not given.
    pub models: Vec<String>,
    /// The question.
    pub request: Request,
    /// The object that a scored answer is given in; `None` for free text.
    pub form: Option<EnumObject>,
    /// Whether the reply is a stream.
    pub stream: bool,
    /// Whether a stream ends with its usage.
    pub include_usage: bool,
    /// Whether the reply carries log-probabilities.
    pub logprobs: bool,
    /// Images in the conversation.
    pub images: usize,
}

impl ChatQuestion {
    /// Size of its decoded images, in bytes.
    pub fn image_bytes(&self) -> usize {
        let content = self.request.turns.iter().flat_map(|turn| &turn.content);
        content
            .map(|content| {
                if let Content::Picture(picture) = content {
                    picture.pixels().len()
                } else {
                    0
                }
            })
            .sum()
    }
}

/// Reads and checks a request's body. Decodes its images, so it belongs on a thread that may
/// block.
///
/// # Errors
/// 400 with the field at fault. Images of more than [`PIXELS_MAX`] pixels together are refused
/// before one of them is decoded.
pub fn read(body: &[u8]) -> Result<ChatQuestion, ApiError> {
    let chat = ChatRequest::from_json(body)?;
    refuse_unsupported(&chat)?;
    check_sampling(&chat)?;
    let form = schema::read(chat.response_format.as_ref())?;
    let mut conversation = Conversation::default();
    let turns = conversation.turns(&chat.messages)?;
    let turns = turns
        .into_iter()
        .map(EncodedTurn::decode)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ChatQuestion {
        request: Request {
            turns,
            candidates: form
                .as_ref()
                .map(|form| form.answers.clone())
                .unwrap_or_default(),
            split: if conversation.high_detail {
                Split::On
            } else {
                Split::Auto
            },
            max_new_tokens: max_new_tokens(&chat)?,
            // Checked to be small.
            top_logprobs: chat.top_logprobs.unwrap_or(0) as usize,
            trace: false,
        },
        form,
        stream: chat.stream.unwrap_or(false),
        include_usage: chat
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false),
        logprobs: chat.logprobs.unwrap_or(false),
        images: conversation.images,
        model: chat.model,
        models: chat.models.unwrap_or_default(),
    })
}

fn refuse_unsupported(chat: &ChatRequest) -> Result<(), ApiError> {
    if chat.n.is_some_and(|n| n != 1) {
        return Err(ApiError::bad_request(
            "n",
            "n is not supported; expected 1: decoding is greedy, so every choice would be the same",
        ));
    }
    for field in UNSUPPORTED {
        if chat
            .rest
            .get(field)
            .is_some_and(|value| !is_default(field, value))
        {
            return Err(ApiError::bad_request(
                field,
                format!("{field} is not supported; leave it out"),
            ));
        }
    }
    let text_only = |value: &Value| value.is_null() || *value == serde_json::json!(["text"]);
    if chat
        .rest
        .get("modalities")
        .is_some_and(|value| !text_only(value))
    {
        return Err(ApiError::bad_request(
            "modalities",
            "modalities other than [\"text\"] are not supported",
        ));
    }
    Ok(())
}

/// Whether a field asks for what its absence does.
fn is_default(field: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => {
            matches!(field, "tool_choice" | "function_call")
                && matches!(text.as_str(), "none" | "auto")
        }
        Value::Bool(true) => false,
    }
}

fn check_sampling(chat: &ChatRequest) -> Result<(), ApiError> {
    for (field, value, max) in [
        ("temperature", chat.temperature, 2.0),
        ("top_p", chat.top_p, 1.0),
    ] {
        if let Some(value) = value.filter(|value| !(0.0..=max).contains(value)) {
            return Err(ApiError::bad_request(
                field,
                format!("{field} is {value}, expected 0 to {max}"),
            ));
        }
    }
    match chat.top_logprobs {
        Some(top) if top > TOP_LOGPROBS_MAX => Err(ApiError::bad_request(
            "top_logprobs",
            format!("top_logprobs is {top}, expected 0 to {TOP_LOGPROBS_MAX}"),
        )),
        Some(top) if top > 0 && chat.logprobs != Some(true) => Err(ApiError::bad_request(
            "top_logprobs",
            "top_logprobs needs logprobs to be true",
        )),
        _ => Ok(()),
    }
}

fn max_new_tokens(chat: &ChatRequest) -> Result<usize, ApiError> {
    let (field, asked) = match (chat.max_completion_tokens, chat.max_tokens) {
        (Some(tokens), _) => ("max_completion_tokens", tokens),
        (None, Some(tokens)) => ("max_tokens", tokens),
        (None, None) => ("max_tokens", MAX_TOKENS_DEFAULT),
    };
    if asked == 0 {
        return Err(ApiError::bad_request(
            field,
            format!("{field} is 0, expected 1 or more"),
        ));
    }
    Ok(asked.min(MAX_TOKENS_MAX) as usize)
}

/// A message with images that are not decoded yet.
struct EncodedTurn {
    role: Role,
    content: Vec<EncodedContent>,
}

/// A part of such a message.
enum EncodedContent {
    Text(String),
    /// The field of an image, and its file.
    Image(String, Vec<u8>),
}

impl EncodedTurn {
    fn decode(self) -> Result<Turn, ApiError> {
        let content = self.content.into_iter().map(|part| match part {
            EncodedContent::Text(text) => Ok(Content::Text(text)),
            EncodedContent::Image(field, bytes) => Picture::decode(&bytes)
                .map(Content::Picture)
                .map_err(|error| unusable(&field, error)),
        });
        Ok(Turn {
            role: self.role,
            content: content.collect::<Result<_, _>>()?,
        })
    }
}

fn unusable(field: &str, what: impl ToString) -> ApiError {
    ApiError::bad_request(field, what.to_string())
}

/// How much of the limits the messages read so far have used.
#[derive(Debug, Default)]
struct Conversation {
    images: usize,
    pixels: u64,
    text_bytes: usize,
    high_detail: bool,
}

impl Conversation {
    fn turns(&mut self, messages: &[Message]) -> Result<Vec<EncodedTurn>, ApiError> {
        if messages.len() > MESSAGES_MAX {
            return Err(ApiError::bad_request(
                "messages",
                format!(
                    "{} messages, expected at most {MESSAGES_MAX}",
                    messages.len()
                ),
            ));
        }
        let turns = messages
            .iter()
            .enumerate()
            .map(|(at, message)| self.turn(at, message))
            .collect::<Result<Vec<_>, _>>()?;
        match turns.last() {
            Some(EncodedTurn {
                role: Role::User, ..
            }) => Ok(turns),
            Some(_) => Err(ApiError::bad_request(
                "messages",
                "the last message is not the user's; expected role user",
            )),
            None => Err(ApiError::bad_request(
                "messages",
                "messages is missing or empty; expected at least one message of role user",
            )),
        }
    }

    fn turn(&mut self, at: usize, message: &Message) -> Result<EncodedTurn, ApiError> {
        let role = match message.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let message = format!(
                    "role {other:?} is not supported; expected system, developer, user or assistant"
                );
                return Err(ApiError::bad_request(
                    format!("messages[{at}].role"),
                    message,
                ));
            }
        };
        let field = format!("messages[{at}].content");
        let content = match &message.content {
            MessageContent::Nothing if role == Role::Assistant => Vec::new(),
            MessageContent::Nothing => {
                return Err(ApiError::bad_request(field, "content is missing"));
            }
            MessageContent::Text(text) => vec![self.text(&field, text)?],
            MessageContent::Parts(parts) => parts
                .iter()
                .enumerate()
                .map(|(part_at, part)| self.part(&format!("{field}[{part_at}]"), part))
                .collect::<Result<_, _>>()?,
        };
        Ok(EncodedTurn { role, content })
    }

    fn part(&mut self, field: &str, part: &request::Part) -> Result<EncodedContent, ApiError> {
        match (part.kind.as_str(), &part.text, &part.image_url) {
            ("text", Some(text), _) => self.text(&format!("{field}.text"), text),
            ("image_url", _, Some(image)) => self.image(&format!("{field}.image_url"), image),
            (kind @ ("text" | "image_url"), ..) => Err(ApiError::bad_request(
                format!("{field}.{kind}"),
                format!("{kind} is missing"),
            )),
            (other, ..) => Err(ApiError::bad_request(
                format!("{field}.type"),
                format!("{other:?} is not supported; expected text or image_url"),
            )),
        }
    }

    fn text(&mut self, field: &str, text: &str) -> Result<EncodedContent, ApiError> {
        self.text_bytes += text.len();
        if self.text_bytes > TEXT_BYTES_MAX {
            return Err(ApiError::bad_request(
                field,
                format!("the messages' text is over {TEXT_BYTES_MAX} bytes"),
            ));
        }
        Ok(EncodedContent::Text(text.to_owned()))
    }

    fn image(&mut self, field: &str, image: &ImageUrl) -> Result<EncodedContent, ApiError> {
        self.images += 1;
        if self.images > IMAGES_MAX {
            return Err(ApiError::bad_request(
                field,
                format!("more than {IMAGES_MAX} images"),
            ));
        }
        match image.detail.as_deref() {
            None | Some("auto" | "low") => {}
            Some("high") => self.high_detail = true,
            Some(other) => {
                return Err(ApiError::bad_request(
                    format!("{field}.detail"),
                    format!("{other:?}, expected auto, low or high"),
                ));
            }
        }
        let field = format!("{field}.url");
        let bytes = data_uri::image_bytes(&image.url).map_err(|what| unusable(&field, what))?;
        self.pixels += Picture::pixels_of(&bytes).map_err(|error| unusable(&field, error))?;
        if self.pixels > PIXELS_MAX {
            let message = format!(
                "the images up to this one have {} pixels together, expected at most {PIXELS_MAX}; scale them first",
                self.pixels
            );
            return Err(ApiError::bad_request(field, message));
        }
        Ok(EncodedContent::Image(field, bytes))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PIXEL: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

    fn read_json(value: Value) -> Result<ChatQuestion, ApiError> {
        read(value.to_string().as_bytes())
    }

    #[test]
    fn an_image_and_a_question() {
        let question = read_json(json!({
            "model": "auto", "temperature": 0.7, "user": "someone", "max_tokens": 9, "tools": [], "stop": null,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
                    {"type": "text", "text": "What is it?"},
                ]},
            ],
        }))
        .unwrap();
        assert_eq!(
            (
                question.images,
                question.request.split,
                question.request.max_new_tokens
            ),
            (1, Split::On, 9)
        );
        assert_eq!(question.image_bytes(), 3);
        insta::assert_snapshot!(format!("{:?}", question.request.turns), @r#"[Turn { role: System, content: [Text("Be brief.")] }, Turn { role: User, content: [Picture(Picture(1x1)), Text("What is it?")] }]"#);
    }

    #[test]
    fn errors_name_the_field() {
        let with = |field: &str, value: Value| {
            let mut request = json!({"messages": [{"role": "user", "content": "hello"}]});
            request[field] = value;
            request
        };
        let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
        let picture = |url: &str| part(json!({"type": "image_url", "image_url": {"url": url}}));
        let refusals: Vec<String> = [
            json!({}),
            json!({"messages": []}),
            json!({"messages": "hello"}),
            json!({"messages": [{"role": "assistant", "content": "hello"}]}),
            json!({"messages": [{"role": "tool", "content": "hello"}]}),
            json!({"messages": [{"role": "user"}]}),
            with("n", json!(2)),
            with("tools", json!([{"type": "function"}])),
            with("tool_choice", json!("required")),
            with("stop", json!("\n")),
            with("logit_bias", json!({"5": 1})),
            with("modalities", json!(["text", "audio"])),
            with("temperature", json!(3)),
            with("max_tokens", json!(0)),
            with("max_tokens", json!("many")),
            with("max_tokens", json!(-1)),
            with("top_logprobs", json!(3)),
            with("response_format", json!({"type": "json_object"})),
            part(json!({"type": "input_audio"})),
            part(json!({"type": "text"})),
            picture("https://example.org/a.jpg"),
        ]
        .into_iter()
        .map(|request| {
            let error = read_json(request).unwrap_err();
            assert_eq!(error.status, 400);
            format!(
                "{}: {}",
                error.param.unwrap(),
                error.message.split(';').next().unwrap()
            )
        })
        .collect();
        insta::assert_snapshot!(refusals.join("\n"), @r#"
        messages: messages is missing or empty
        messages: messages is missing or empty
        messages: messages: found "hello", expected a list of objects with role and content
        messages: the last message is not the user's
        messages[0].role: role "tool" is not supported
        messages[0].content: content is missing
        n: n is not supported
        tools: tools is not supported
        tool_choice: tool_choice is not supported
        stop: stop is not supported
        logit_bias: logit_bias is not supported
        modalities: modalities other than ["text"] are not supported
        temperature: temperature is 3, expected 0 to 2
        max_tokens: max_tokens is 0, expected 1 or more
        max_tokens: max_tokens: found "many", expected a whole number, 1 or more
        max_tokens: max_tokens: found -1, expected a whole number, 1 or more
        top_logprobs: top_logprobs needs logprobs to be true
        response_format: type "json_object" is not supported
        messages[0].content[0].type: "input_audio" is not supported
        messages[0].content[0].text: text is missing
        messages[0].content[0].image_url.url: expected a data URI such as data:image/jpeg
        "#);
        let broken = read_json(picture("data:image/png;base64,AAAA")).unwrap_err();
        assert_eq!(
            broken.param.as_deref(),
            Some("messages[0].content[0].image_url.url")
        );
    }

    #[test]
    fn the_seventeenth_image_is_refused() {
        let images: Vec<_> = (0..17)
            .map(|_| json!({"type": "image_url", "image_url": {"url": PIXEL}}))
            .collect();
        let error =
            read_json(json!({"messages": [{"role": "user", "content": images}]})).unwrap_err();
        assert_eq!(
            error.param.as_deref(),
            Some("messages[0].content[16].image_url")
        );
    }

    /// A BMP file that ends after its header.
    fn header(width: u32, height: u32) -> String {
        let mut file = b"BM".to_vec();
        // Length, reserved, offset of the pixels; length of the second header, sides, planes and
        // bits per pixel; six fields of nothing.
        for field in [54, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        format!("data:image/bmp;base64,{}", STANDARD.encode(file))
    }

    #[test]
    fn all_images_together_are_limited_before_one_is_decoded() {
        let refused = |urls: &[&str]| {
            let parts: Vec<_> = urls
                .iter()
                .map(|url| json!({"type": "image_url", "image_url": {"url": url}}))
                .collect();
            let error =
                read_json(json!({"messages": [{"role": "system", "content": parts}, {"role": "user", "content": "?"}]})).unwrap_err();
            format!("{}: {}", error.param.unwrap(), error.message)
        };
        let half = header(8000, 4000);
        assert!(
            refused(&[&half, &half])
                .starts_with("messages[0].content[0].image_url.url: image: bmp file ends"),
            "images of exactly the limit are decoded"
        );
        insta::assert_snapshot!(refused(&[&half, PIXEL, &half]), @"messages[0].content[2].image_url.url: the images up to this one have 64000001 pixels together, expected at most 64000000; scale them first");
        insta::assert_snapshot!(refused(&[&header(8000, 8001)]), @"messages[0].content[0].image_url.url: image of 8000x8001: expected sides of 1 or more and at most 64000000 pixels; scale it first");
    }

    #[test]
    fn an_error_repeats_only_the_beginning_of_a_long_value() {
        let long = "x".repeat(1 << 20);
        for request in [
            json!({"messages": [{"role": long, "content": "hello"}]}),
            json!({"messages": [{"role": "user", "content": [{"type": long}]}]}),
            json!({"response_format": {"type": long}, "messages": []}),
            json!({"stream_options": {"include_usage": long}, "messages": []}),
        ] {
            let error = read_json(request).unwrap_err();
            assert!(error.message.len() < 1000, "{} bytes", error.message.len());
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in ["", "[]", "{\"messages\":", "\u{0}"] {
            assert_eq!(read(body.as_bytes()).unwrap_err().status, 400, "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&body);
        }
    }
}
