//! int8: matrix products in 8-bit integers, weights per output channel and symmetric, activations
//! dynamic.
//!
//! ```text
//! x ─▶ DynamicQuantizeLinear ─▶ MatMulInteger(·, W) ─▶ Cast f32 ─▶ · (scale of x · scales of W) ─▶ y
//! ```
//!
//! This form is the one that ONNX Runtime fuses into one kernel. Products that share an input
//! share its quantization.

use std::collections::{BTreeMap, BTreeSet};

use firmware_config::manifest::QuantizedTensor;

use super::{Quantized, distance, matrix, scale_name};
use crate::checkpoint::CheckpointError;
use crate::graph::{
    Attribute, Element, Graph, Initializer, Layout, Node, TensorSource, Values, transpose,
};

/// The largest magnitude of an integer weight; -128 is unused, so that the range is symmetric.
const WEIGHT_MAX: f32 = 127.0;

pub(super) fn quantize(
    mut graph: Graph,
    weights: &impl TensorSource,
    takes_int8: impl Fn(&str) -> bool,
) -> Result<Quantized, CheckpointError> {
    let mut tensors = Vec::new();
    let mut scales = BTreeMap::new();
    for initializer in std::mem::take(&mut graph.initializers) {
        match matrix(&initializer) {
            Some((tensor, Layout::Transposed)) if takes_int8(tensor) => {
                let (integers, scale, loss) = quantize_matrix(tensor, &initializer, weights)?;
                scales.insert(initializer.name, scale.name.clone());
                graph.initializers.extend([integers, scale]);
                tensors.push(loss);
            }
            _ => graph.initializers.push(initializer),
        }
    }
    let mut seen = BTreeSet::new();
    let nodes = std::mem::take(&mut graph.nodes);
    graph.nodes = nodes
        .into_iter()
        .flat_map(
            |node| match node.inputs.get(1).and_then(|weight| scales.get(weight)) {
                Some(scale) if node.op == "MatMul" => integer_product(node, scale, &mut seen),
                _ => vec![node],
            },
        )
        .collect();
    Ok(Quantized { graph, tensors })
}

/// A matrix as [in, out] integers with one scale for each output.
fn quantize_matrix(
    tensor: &str,
    initializer: &Initializer,
    weights: &impl TensorSource,
) -> Result<(Initializer, Initializer, QuantizedTensor), CheckpointError> {
    let source = weights.read(tensor)?;
    let [inputs, outputs] = [initializer.dims[0], initializer.dims[1]];
    let (integers, scales) = per_channel(&source.values, inputs);
    let restored = integers
        .iter()
        .enumerate()
        .map(|(i, &integer)| integer * scales[i / inputs]);
    let loss = distance(tensor, &source.values, restored);
    let bytes = transpose(&integers, outputs, inputs)
        .into_iter()
        .map(|integer| (integer as i8).cast_unsigned())
        .collect();
    let literal = |name: String, element, dims: &[usize], bytes| Initializer {
        name,
        element,
        dims: dims.into(),
        values: Values::Literal(bytes),
    };
    let scale_bytes = scales
        .iter()
        .flat_map(|scale| scale.to_le_bytes())
        .collect();
    let integers = literal(
        initializer.name.clone(),
        Element::I8,
        &initializer.dims,
        bytes,
    );
    let scales = literal(
        scale_name(&initializer.name),
        Element::F32,
        &[outputs],
        scale_bytes,
    );
    Ok((integers, scales, loss))
}

/// Rounds each row of `width` values to whole multiples of its own scale, -127..=127.
fn per_channel(values: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let mut integers = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len() / width);
    for row in values.chunks_exact(width) {
        let largest = row
            .iter()
            .fold(0f32, |largest, value| largest.max(value.abs()));
        // A row of zeros has any scale; so has one whose scale would vanish in f32.
        let scale = if largest / WEIGHT_MAX > 0.0 {
            largest / WEIGHT_MAX
        } else {
            1.0
        };
        integers.extend(row.iter().map(|value| {
            (value / scale)
                .round_ties_even()
                .clamp(-WEIGHT_MAX, WEIGHT_MAX)
        }));
        scales.push(scale);
    }
    (integers, scales)
}

/// The nodes that replace one `MatMul`; `seen` holds the inputs that are already quantized.
fn integer_product(node: Node, weight_scale: &str, seen: &mut BTreeSet<String>) -> Vec<Node> {
    let [input, weight] = [node.inputs[0].clone(), node.inputs[1].clone()];
    let part = |suffix: &str| format!("{input}/{suffix}");
    let [x, x_scale, x_zero] = ["u8", "scale", "zero_point"].map(part);
    let integer = |name: String, op, inputs: &[&str], outputs: Vec<String>, attributes| Node {
        op,
        name,
        inputs: inputs.iter().map(|&input| input.into()).collect(),
        outputs,
        attributes,
    };
    let one = |suffix: &str, op, inputs: &[&str], attributes| {
        let name = format!("{}/{suffix}", node.name);
        integer(name.clone(), op, inputs, vec![name], attributes)
    };
    let mut nodes = Vec::new();
    if seen.insert(input.clone()) {
        let outputs = vec![x.clone(), x_scale.clone(), x_zero.clone()];
        nodes.push(integer(
            format!("{input}/quantize"),
            "DynamicQuantizeLinear",
            &[&input],
            outputs,
            Vec::new(),
        ));
    }
    let product = one("i32", "MatMulInteger", &[&x, &weight, &x_zero], Vec::new());
    let widened = one(
        "f32",
        "Cast",
        &[&product.name],
        vec![("to", Attribute::Element(Element::F32))],
    );
    let scale = one("scale", "Mul", &[&x_scale, weight_scale], Vec::new());
    let scaled = integer(
        node.name.clone(),
        "Mul",
        &[&widened.name, &scale.name],
        node.outputs.clone(),
        Vec::new(),
    );
    nodes.extend([product, widened, scale, scaled]);
    nodes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::Tensor;
    use crate::graph::builder::Builder;

    struct Always(Vec<f32>);

    impl TensorSource for Always {
        fn read(&self, _: &str) -> Result<Tensor, CheckpointError> {
            Ok(Tensor {
                shape: vec![2, 3],
                values: self.0.clone(),
            })
        }
    }

    #[test]
    fn products_of_one_input_share_its_quantization() {
        let mut build = Builder::new("g");
        let x = build.input("x", Element::F32, ["n".into(), 3.into()]);
        let q = build.linear(&x, "q", [2, 3]);
        let k = build.linear(&x, "k", [2, 3]);
        let kept = build.linear(&x, "kept", [2, 3]);
        for (name, value) in [("a", &q), ("b", &k), ("c", &kept)] {
            build.output(name, value, Element::F32, ["n".into(), 2.into()]);
        }
        let weights = Always(vec![1.0, -2.0, 0.5, 0.0, 0.0, 0.0]);
        let quantized = quantize(build.finish(), &weights, |tensor| tensor != "kept").unwrap();
        let line = |node: &Node| {
            format!(
                "{} = {}({})",
                node.outputs.join(", "),
                node.op,
                node.inputs.join(", ")
            )
        };
        let nodes: Vec<String> = quantized.graph.nodes.iter().map(line).collect();
        insta::assert_snapshot!(nodes[..10].join("\n"), @r"
        x/u8, x/scale, x/zero_point = DynamicQuantizeLinear(x)
        /MatMul.0/i32 = MatMulInteger(x/u8, q, x/zero_point)
        /MatMul.0/f32 = Cast(/MatMul.0/i32)
        /MatMul.0/scale = Mul(x/scale, q_scale)
        /MatMul.0 = Mul(/MatMul.0/f32, /MatMul.0/scale)
        /MatMul.1/i32 = MatMulInteger(x/u8, k, x/zero_point)
        /MatMul.1/f32 = Cast(/MatMul.1/i32)
        /MatMul.1/scale = Mul(x/scale, k_scale)
        /MatMul.1 = Mul(/MatMul.1/f32, /MatMul.1/scale)
        /MatMul.2 = MatMul(x, kept)
        ");
        let integers = &quantized
            .graph
            .initializers
            .iter()
            .find(|i| i.name == "q")
            .unwrap()
            .values;
        // [in, out]; round(1 / (2 / 127)) = 64 by ties to even.
        assert_eq!(
            *integers,
            Values::Literal([64i8, 0, -127, 0, 32, 0].map(i8::cast_unsigned).into())
        );
        assert_eq!(quantized.tensors.len(), 2);
    }

    proptest! {
        #[test]
        fn a_weight_is_at_most_half_a_step_off(values in prop::collection::vec(-10f32..10.0, 12)) {
            let (integers, scales) = per_channel(&values, 4);
            for (i, &value) in values.iter().enumerate() {
                let scale = scales[i / 4];
                prop_assert!(integers[i].abs() <= WEIGHT_MAX && integers[i].fract() == 0.0);
                prop_assert!((value - integers[i] * scale).abs() <= scale * 0.5001);
            }
        }
    }
}
