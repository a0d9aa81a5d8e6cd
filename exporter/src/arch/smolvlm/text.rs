//! Token embedding and text decoder.
//!
//! ```text
//! inputs_embeds ─▶ L × { + attention(norm, past), + mlp(norm) } ─▶ norm ─▶ head ─▶ logits
//! ```
//!
//! Mask and rotary angles come from the inputs' values (`attention_mask`, `position_ids`), never
//! from shapes: the optimizers of some runtimes fold shape arithmetic wrongly when lengths are
//! symbols.

use firmware_config::manifest::Part;
use firmware_config::tensors;

use super::{EMBEDDING, SmolVlm, TEXT_LAYERS, TEXT_NORM};
use crate::graph::builder::{Builder, ValueName};
use crate::graph::{Dim, Element, Graph};

const BATCH: &str = "batch";
const SEQUENCE: &str = "sequence_length";
const PAST: &str = "past_sequence_length";
const TOTAL: &str = "total_sequence_length";

/// Added to the scores of masked positions; finite, so that a fully masked row is not NaN.
const MASKED: f32 = -1e9;

pub(super) fn embedding(model: &SmolVlm) -> Graph {
    let text = &model.geometry.text;
    let mut build = Builder::new(Part::EmbedTokens.as_str());
    build.scope("embed_tokens");
    let ids = build.input(
        tensors::INPUT_IDS,
        Element::I64,
        [BATCH.into(), SEQUENCE.into()],
    );
    let table = build.weight(EMBEDDING, &[text.vocab_size, text.hidden_size]);
    let rows = build.gather(&table, &ids);
    build.output(
        tensors::INPUTS_EMBEDS,
        &rows,
        Element::F32,
        [BATCH.into(), SEQUENCE.into(), text.hidden_size.into()],
    );
    build.finish()
}

pub(super) fn decoder(model: &SmolVlm) -> Graph {
    let text = &model.geometry.text;
    // Inputs: embeddings, mask, positions, and the KV cache of every layer.
    let mut build = Builder::new(Part::DecoderModelMerged.as_str());
    let mut x = build.input(
        tensors::INPUTS_EMBEDS,
        Element::F32,
        [BATCH.into(), SEQUENCE.into(), text.hidden_size.into()],
    );
    let attention_mask = build.input(
        tensors::ATTENTION_MASK,
        Element::I64,
        [BATCH.into(), TOTAL.into()],
    );
    let position_ids = build.input(
        tensors::POSITION_IDS,
        Element::I64,
        [BATCH.into(), SEQUENCE.into()],
    );
    let cache = |length: &str| -> [Dim; 4] {
        [
            BATCH.into(),
            text.kv_heads.into(),
            length.into(),
            text.head_dim.into(),
        ]
    };
    let past: Vec<[ValueName; 2]> = tensors::past_key_values(text.layers)
        .map(|names| names.map(|name| build.input(&name, Element::F32, cache(PAST))))
        .collect();

    // Mask and rotary angles are the same for every layer.
    let mask = causal_mask(&mut build, &attention_mask, &position_ids);
    let rotary = Rotary::new(&mut build, model, &position_ids);
    // Layers; each appends to its cache.
    let mut present = Vec::new();
    for (i, past) in past.iter().enumerate() {
        let grown;
        (x, grown) = block(
            &mut build,
            model,
            &x,
            &format!("{TEXT_LAYERS}.{i}"),
            &mask,
            &rotary,
            past,
        );
        present.push(grown);
    }
    // Head and outputs.
    build.scope("lm_head");
    x = build.rms_norm(&x, TEXT_NORM, text.hidden_size, model.rms_norm_eps);
    let logits = build.linear(&x, model.head, [text.vocab_size, text.hidden_size]);

    build.output(
        tensors::LOGITS,
        &logits,
        Element::F32,
        [BATCH.into(), SEQUENCE.into(), text.vocab_size.into()],
    );
    for (names, grown) in tensors::present(text.layers).zip(&present) {
        for (name, value) in names.iter().zip(grown) {
            build.output(name, value, Element::F32, cache(TOTAL));
        }
    }
    build.finish()
}

/// [batch, 1, 1, sequence, total]: 0 where a token may attend, [`MASKED`] where it may not.
///
/// A key's position is the number of real tokens up to it, less one; a token attends to real
/// keys at positions up to its own.
fn causal_mask(
    build: &mut Builder,
    attention_mask: &ValueName,
    position_ids: &ValueName,
) -> ValueName {
    build.scope("causal_mask");
    // A scalar: tract does not accept the axis as a list of one.
    let axis = build.int(1);
    let one = build.int(1);
    let count = build.op("CumSum", &[attention_mask, &axis], &[]);
    let key = build.op("Sub", &[&count, &one], &[]);
    let key = build.unsqueeze(&key, 1);
    let query = build.unsqueeze(position_ids, 2);
    let earlier = build.op("LessOrEqual", &[&key, &query], &[]);
    let real = build.op("Equal", &[attention_mask, &one], &[]);
    let real = build.unsqueeze(&real, 1);
    let visible = build.op("And", &[&earlier, &real], &[]);
    let (zero, masked) = (build.float(0.0), build.float(MASKED));
    let mask = build.op("Where", &[&visible, &zero, &masked], &[]);
    let axes = build.ints(&[1, 2]);
    build.op("Unsqueeze", &[&mask, &axes], &[])
}

/// Cosines and sines at this run's positions.
struct Rotary {
    /// [batch, 1, sequence, head_dim], for queries and keys alike.
    cos: ValueName,
    sin: ValueName,
    head_dim: usize,
}

impl Rotary {
    fn new(build: &mut Builder, model: &SmolVlm, position_ids: &ValueName) -> Self {
        let text = &model.geometry.text;
        let (cos, sin) = rotary_tables(text.context_length, text.head_dim, model.rope_theta);
        build.scope("rotary");
        let mut at_positions = |table: &[f32]| {
            let table = build.floats(&[text.context_length, text.head_dim], table);
            let rows = build.gather(&table, position_ids);
            build.unsqueeze(&rows, 1)
        };
        Rotary {
            cos: at_positions(&cos),
            sin: at_positions(&sin),
            head_dim: text.head_dim,
        }
    }

    /// x · cos + (halves of x swapped) · sin, the first half's sine being negative: rotate-half.
    fn apply(&self, build: &mut Builder, x: &ValueName) -> ValueName {
        let [first, second] = build.halves(x, self.head_dim);
        let swapped = build.concat(&[&second, &first], -1);
        let straight = build.mul(x, &self.cos);
        let crossed = build.mul(&swapped, &self.sin);
        build.add(&straight, &crossed)
    }
}

/// cos and signed sin of position · theta^(-2i / head_dim), [positions, head_dim], both halves
/// equal except for the sine's sign.
fn rotary_tables(positions: usize, head_dim: usize, theta: f64) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    // Frequencies are rounded to f32 and multiplied in f32, as the models were trained.
    let frequencies: Vec<f32> = (0..half)
        .map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64) as f32)
        .collect();
    let mut cos = Vec::with_capacity(positions * head_dim);
    let mut sin = Vec::with_capacity(positions * head_dim);
    for position in 0..positions {
        let angles = frequencies
            .iter()
            .map(|&frequency| f64::from(position as f32 * frequency));
        cos.extend(
            angles
                .clone()
                .chain(angles.clone())
                .map(|angle| angle.cos() as f32),
        );
        sin.extend(
            angles
                .clone()
                .map(|angle| -angle.sin() as f32)
                .chain(angles.map(|angle| angle.sin() as f32)),
        );
    }
    (cos, sin)
}

/// One layer; returns its output, and the cache with this run's keys and values appended.
fn block(
    build: &mut Builder,
    model: &SmolVlm,
    x: &ValueName,
    layer: &str,
    mask: &ValueName,
    rotary: &Rotary,
    past: &[ValueName; 2],
) -> (ValueName, [ValueName; 2]) {
    let (width, inner, eps) = (
        model.geometry.text.hidden_size,
        model.text_intermediate,
        model.rms_norm_eps,
    );
    build.scope(format!("{layer}.self_attn"));
    let normal = build.rms_norm(x, &format!("{layer}.input_layernorm.weight"), width, eps);
    let (attended, present) = attention(
        build,
        model,
        &normal,
        &format!("{layer}.self_attn"),
        mask,
        rotary,
        past,
    );
    let x = build.add(x, &attended);

    build.scope(format!("{layer}.mlp"));
    let normal = build.rms_norm(
        &x,
        &format!("{layer}.post_attention_layernorm.weight"),
        width,
        eps,
    );
    let gate = build.linear(
        &normal,
        &format!("{layer}.mlp.gate_proj.weight"),
        [inner, width],
    );
    let up = build.linear(
        &normal,
        &format!("{layer}.mlp.up_proj.weight"),
        [inner, width],
    );
    let gate = build.silu(&gate);
    let hidden = build.mul(&gate, &up);
    let output = build.linear(
        &hidden,
        &format!("{layer}.mlp.down_proj.weight"),
        [width, inner],
    );
    (build.add(&x, &output), present)
}

/// softmax(q · kᵀ / √d + mask) · v with each key head shared by a group of query heads; returns the
/// output, and the cache with this run's keys and values appended.
fn attention(
    build: &mut Builder,
    model: &SmolVlm,
    x: &ValueName,
    layer: &str,
    mask: &ValueName,
    rotary: &Rotary,
    [past_key, past_value]: &[ValueName; 2],
) -> (ValueName, [ValueName; 2]) {
    let text = &model.geometry.text;
    let (width, heads, kv_heads, head_dim) =
        (text.hidden_size, text.heads, text.kv_heads, text.head_dim);
    // Queries, keys and values, each [batch, heads, sequence, head_dim].
    let project = |build: &mut Builder, name: &str, heads: usize| {
        let projected = build.linear(
            x,
            &format!("{layer}.{name}.weight"),
            [heads * head_dim, width],
        );
        let split = build.reshape(&projected, &[0, 0, heads as i64, head_dim as i64]);
        build.transpose(&split, &[0, 2, 1, 3])
    };
    let q = project(build, "q_proj", heads);
    let k = project(build, "k_proj", kv_heads);
    let v = project(build, "v_proj", kv_heads);
    // Rotated by position; the scale is applied to the queries; keys and values join the cache.
    let q = rotary.apply(build, &q);
    let k = rotary.apply(build, &k);
    let scale = build.float((head_dim as f64).powf(-0.5) as f32);
    let q = build.mul(&q, &scale);
    let key = build.concat(&[past_key, &k], 2);
    let value = build.concat(&[past_value, &v], 2);

    // Attention with grouped queries: [batch, kv_heads, group, sequence, head_dim] against
    // [batch, kv_heads, 1, …].
    let q = build.reshape(
        &q,
        &[
            0,
            kv_heads as i64,
            (heads / kv_heads) as i64,
            -1,
            head_dim as i64,
        ],
    );
    let k = build.unsqueeze(&key, 2);
    let k = build.transpose(&k, &[0, 1, 2, 4, 3]);
    let v = build.unsqueeze(&value, 2);
    let scores = build.matmul(&q, &k);
    let scores = build.add(&scores, mask);
    let weights = build.softmax(&scores);
    let context = build.matmul(&weights, &v);
    // Heads side by side again, then the output projection.
    let context = build.transpose(&context, &[0, 3, 1, 2, 4]);
    let context = build.reshape(&context, &[0, 0, (heads * head_dim) as i64]);
    let output = build.linear(
        &context,
        &format!("{layer}.o_proj.weight"),
        [width, heads * head_dim],
    );
    (output, [key, value])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_tables_hold_the_angles_of_both_halves() {
        let (cos, sin) = rotary_tables(3, 4, 100.0);
        // Frequencies 1 and 0.1; position 2.
        for (i, (angle, sign)) in [(2.0f64, -1.0), (0.2, -1.0), (2.0, 1.0), (0.2, 1.0)]
            .into_iter()
            .enumerate()
        {
            assert!((f64::from(cos[8 + i]) - angle.cos()).abs() < 1e-6);
            assert!((f64::from(sin[8 + i]) - sign * angle.sin()).abs() < 1e-6);
        }
    }
}
