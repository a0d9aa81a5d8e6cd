//! Valid files of each kind, damaged at random.

use proptest::prelude::*;
use proptest::sample::Index;

/// One way to damage a file.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Position, u8),
    Insert(Position, Vec<u8>),
    Cut(Position, u8),
    Repeat(Position, u8),
    Truncate(Position),
}

/// Where the file is damaged: in half of the cases near its beginning, where most formats keep
/// their lengths.
#[derive(Debug, Clone)]
struct Position {
    head: bool,
    index: Index,
}

impl Position {
    fn of(&self, bytes: &[u8]) -> usize {
        let end = if self.head {
            bytes.len().min(512)
        } else {
            bytes.len()
        };
        self.index.index(end + 1).min(end)
    }
}

fn position() -> impl Strategy<Value = Position> {
    (any::<bool>(), any::<Index>()).prop_map(|(head, index)| Position { head, index })
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (position(), 1u8..).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        2 => (position(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        2 => (position(), any::<u8>()).prop_map(|(at, length)| Damage::Cut(at, length)),
        1 => (position(), any::<u8>()).prop_map(|(at, length)| Damage::Repeat(at, length)),
        1 => position().prop_map(Damage::Truncate),
    ]
}

fn damaged(seed: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for damage in damages {
        match damage {
            Damage::Flip(at, mask) => {
                let at = at.of(&bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= mask;
                }
            }
            Damage::Insert(at, inserted) => {
                let at = at.of(&bytes);
                bytes.splice(at..at, inserted.iter().copied());
            }
            Damage::Cut(at, length) => {
                let at = at.of(&bytes);
                bytes.drain(at..(at + usize::from(*length)).min(bytes.len()));
            }
            Damage::Repeat(at, length) => {
                let at = at.of(&bytes);
                let again = bytes[at..(at + usize::from(*length)).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            Damage::Truncate(at) => bytes.truncate(at.of(&bytes)),
        }
    }
    bytes
}

/// Checks `property` on the seeds as they are, then damaged.
fn holds(seeds: &[&[u8]], property: impl Fn(&[u8])) {
    for seed in seeds {
        property(seed);
    }
    let case = (any::<Index>(), prop::collection::vec(damage(), 1..6));
    proptest!(ProptestConfig::with_cases(512), |((seed, damages) in case)| {
        property(&damaged(seeds[seed.index(seeds.len())], &damages));
    });
}

fn holds_for_text(seeds: &[&str], property: impl Fn(&str)) {
    let seeds: Vec<&[u8]> = seeds.iter().map(|seed| seed.as_bytes()).collect();
    holds(&seeds, |bytes| property(&String::from_utf8_lossy(bytes)));
}

/// A safetensors file with two tensors of one layer.
fn safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b.weight":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
    let length = header.len() as u64;
    [length.to_le_bytes().as_slice(), header.as_bytes(), &[0; 32]].concat()
}

#[test]
fn configurations() {
    holds_for_text(
        &[include_str!("../../firmware-config/agent.example.toml")],
        crate::agent_config,
    );
}

#[test]
fn manifests() {
    holds(
        &[include_bytes!("../../demo/bundles/nano-edge/manifest.json")],
        crate::manifest,
    );
}

#[test]
fn checkpoints() {
    holds(&[&safetensors()], crate::checkpoint);
}

#[test]
fn onnx_files() {
    holds(
        &[include_bytes!(
            "../../demo/bundles/nano-edge/onnx/embed_tokens_fp16.onnx"
        )],
        crate::onnx,
    );
}

#[test]
fn pictures() {
    let mut png = Vec::new();
    // 1 x 1, grey, written by hand: the smallest valid PNG.
    png.extend_from_slice(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU");
    png.extend_from_slice(b"\0\0\0\nIDATx\x9cc`\0\0\0\x02\0\x01H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82");
    let jpegs: [&[u8]; 3] = [
        include_bytes!("../../tests/data/pictures/cmyk.jpg"),
        include_bytes!("../../tests/data/pictures/exif_rotated.jpg"),
        include_bytes!("../../tests/data/pictures/progressive.jpg"),
    ];
    assert!(vlm::Picture::decode(&png).is_ok(), "the seed is valid");
    holds(&[&png, jpegs[0], jpegs[1], jpegs[2]], crate::picture);
}

#[test]
fn cameras() {
    let two = [b"P6\n2 1\n255\nabcdef".as_slice(), b"P6\n1 1\n255\nxyz"].concat();
    holds(&[&two], crate::camera);
}

#[test]
fn templates() {
    holds_for_text(
        &[include_str!(
            "../../demo/bundles/nano-edge/chat_template.jinja"
        )],
        crate::template,
    );
}

#[test]
fn texts() {
    holds_for_text(
        &["<|im_start|>User: 12.5 m² of naïve 日本語 🦩<image><end_of_utterance>\n\nAssistant:"],
        crate::encode,
    );
}

#[test]
fn chat_requests() {
    let pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";
    let request = format!(
        r#"{{"model":"auto","messages":[{{"role":"system","content":"Short."}},{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{pixel}"}}}},{{"type":"text","text":"a person?"}}]}}],"logprobs":true,"top_logprobs":5,"max_tokens":9,"response_format":{{"type":"json_schema","json_schema":{{"name":"a","schema":{{"type":"object","properties":{{"answer":{{"type":"string","enum":["yes","no"]}}}},"required":["answer"],"additionalProperties":false}}}}}}}}"#
    );
    assert!(
        runtime::serve::chat::read(request.as_bytes()).is_ok(),
        "the seed is valid"
    );
    holds(&[request.as_bytes()], crate::chat_request);
}

#[test]
fn pool_replies() {
    let completion = r#"{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"{\"answer\":\"yes\"}"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;
    holds(
        &[
            completion.as_bytes(),
            b"Well, not visible.",
            b"```json\n{\"answer\": \"no\"}\n```",
        ],
        crate::pool_reply,
    );
}

#[test]
fn labels() {
    let rows = "{\"image\":\"a.jpg\",\"question\":\"q\",\"answer\":\"yes\",\"candidates\":[\"yes\",\"no\"],\"family\":\"yes_no\",\"camera\":\"yard\"}\n\n";
    holds_for_text(&[&rows.repeat(2)], crate::labels);
}
