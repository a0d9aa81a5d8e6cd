//! Vision encoder and connector.
//!
//! ```text
//! pixel_values ─▶ patches ─▶ + positions ─▶ L × { + attention(norm), + mlp(norm) } ─▶ norm ─▶ pixel shuffle ─▶ projection ─▶ image_features
//! ```
//!
//! Every tile is whole, so positions are the identity and attention is unmasked: the graph is
//! static except for the number of tiles.

use firmware_config::manifest::Part;
use firmware_config::tensors;

use super::{
    PATCH_EMBEDDING, POSITION_EMBEDDING, POST_LAYERNORM, PROJECTION, SmolVlm, VISION_LAYERS,
};
use crate::graph::builder::{Builder, ValueName};
use crate::graph::{Attribute, Element, Graph};

pub(super) fn encoder(model: &SmolVlm) -> Graph {
    let side = model.geometry.vision.image_size;
    let mut build = Builder::new(Part::VisionEncoder.as_str());
    let pixels = build.input(
        tensors::PIXEL_VALUES,
        Element::F32,
        [
            "batch".into(),
            "num_images".into(),
            3.into(),
            side.into(),
            side.into(),
        ],
    );
    // In the published interface; tiles have no padding, so no node reads it.
    build.input(
        tensors::PIXEL_ATTENTION_MASK,
        Element::Bool,
        [
            "batch".into(),
            "num_images".into(),
            side.into(),
            side.into(),
        ],
    );

    let mut x = embed_patches(&mut build, model, &pixels);
    for layer in 0..model.geometry.vision.layers {
        x = block(&mut build, model, &x, &format!("{VISION_LAYERS}.{layer}"));
    }
    build.scope("post_layernorm");
    x = build.layer_norm(
        &x,
        POST_LAYERNORM,
        model.geometry.vision.hidden_size,
        model.layer_norm_eps,
    );
    let features = connector(&mut build, model, &x);

    let dims = [
        "batch*num_images".into(),
        model.tokens_per_tile.into(),
        model.geometry.text.hidden_size.into(),
    ];
    build.output(tensors::IMAGE_FEATURES, &features, Element::F32, dims);
    build.finish()
}

/// [batch, images, 3, T, T] to [batch·images, patches, width].
fn embed_patches(build: &mut Builder, model: &SmolVlm, pixels: &ValueName) -> ValueName {
    let vision = &model.geometry.vision;
    let (width, patch, side) = (
        vision.hidden_size,
        vision.patch_size,
        vision.image_size as i64,
    );
    build.scope("embeddings");
    let tiles = build.reshape(pixels, &[-1, 3, side, side]);
    let kernel = build.weight(
        &format!("{PATCH_EMBEDDING}.weight"),
        &[width, 3, patch, patch],
    );
    let bias = build.weight(&format!("{PATCH_EMBEDDING}.bias"), &[width]);
    let square = Attribute::Ints(vec![patch as i64; 2]);
    // Without padding, so pixels beyond the last whole patch are cropped.
    let grid = build.op(
        "Conv",
        &[&tiles, &kernel, &bias],
        &[("kernel_shape", square.clone()), ("strides", square)],
    );
    let rows = build.reshape(&grid, &[0, width as i64, (model.grid * model.grid) as i64]);
    let patches = build.transpose(&rows, &[0, 2, 1]);
    let positions = build.weight(POSITION_EMBEDDING, &[model.grid * model.grid, width]);
    build.add(&patches, &positions)
}

fn block(build: &mut Builder, model: &SmolVlm, x: &ValueName, layer: &str) -> ValueName {
    let (width, inner, eps) = (
        model.geometry.vision.hidden_size,
        model.vision_intermediate,
        model.layer_norm_eps,
    );
    build.scope(layer);
    let normal = build.layer_norm(x, &format!("{layer}.layer_norm1"), width, eps);
    let attended = attention(build, model, &normal, &format!("{layer}.self_attn"));
    let x = build.add(x, &attended);

    build.scope(format!("{layer}.mlp"));
    let normal = build.layer_norm(&x, &format!("{layer}.layer_norm2"), width, eps);
    let hidden = build.linear_bias(&normal, &format!("{layer}.mlp.fc1"), [inner, width]);
    let hidden = build.gelu_tanh(&hidden);
    let output = build.linear_bias(&hidden, &format!("{layer}.mlp.fc2"), [width, inner]);
    build.add(&x, &output)
}

/// softmax(q · kᵀ / √d) · v, every patch attending to every other.
fn attention(build: &mut Builder, model: &SmolVlm, x: &ValueName, layer: &str) -> ValueName {
    let (width, heads) = (
        model.geometry.vision.hidden_size,
        model.geometry.vision.heads,
    );
    let head_dim = width / heads;
    build.scope(layer);
    let project = |build: &mut Builder, name: &str| {
        let projected = build.linear_bias(x, &format!("{layer}.{name}"), [width, width]);
        build.reshape(&projected, &[0, 0, heads as i64, head_dim as i64])
    };
    let q = project(build, "q_proj");
    let k = project(build, "k_proj");
    let v = project(build, "v_proj");
    let scale = build.float((head_dim as f64).powf(-0.5) as f32);
    let q = build.transpose(&q, &[0, 2, 1, 3]);
    let q = build.mul(&q, &scale);
    let k = build.transpose(&k, &[0, 2, 3, 1]);
    let v = build.transpose(&v, &[0, 2, 1, 3]);
    let scores = build.matmul(&q, &k);
    let weights = build.softmax(&scores);
    let context = build.matmul(&weights, &v);
    let context = build.transpose(&context, &[0, 2, 1, 3]);
    let context = build.reshape(&context, &[0, 0, width as i64]);
    build.linear_bias(&context, &format!("{layer}.out_proj"), [width, width])
}

/// Pixel shuffle: every scale × scale square of patches becomes one token, scale² times as wide,
/// then one projection.
fn connector(build: &mut Builder, model: &SmolVlm, x: &ValueName) -> ValueName {
    let scale = model.geometry.scale_factor;
    let (width, cells) = (model.geometry.vision.hidden_size, model.grid / scale);
    let dims = |dims: &[usize]| dims.iter().map(|&dim| dim as i64).collect::<Vec<_>>();
    build.scope("connector");
    // [n, row, patch row, column, patch column · width] to [n, row, column, patch row, patch column
    // · width]
    let split = build.reshape(x, &dims(&[0, cells, scale, cells, scale * width]));
    let squares = build.transpose(&split, &[0, 1, 3, 2, 4]);
    let tokens = build.reshape(&squares, &dims(&[0, cells * cells, scale * scale * width]));
    build.linear(
        &tokens,
        PROJECTION,
        [model.geometry.text.hidden_size, scale * scale * width],
    )
}
