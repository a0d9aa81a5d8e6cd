//! fp16: matrices are stored as 16-bit floats and widened where they are used.
//!
//! Arithmetic stays f32 on every runtime: the cast of a constant is folded when the graph is
//! loaded. A table that rows are gathered from is widened after the gather instead, so that it
//! stays small in memory too.

use std::collections::BTreeMap;

use firmware_config::manifest::QuantizedTensor;
use half::f16;

use super::{Quantized, distance, matrix};
use crate::checkpoint::CheckpointError;
use crate::graph::{Attribute, Element, Graph, Node, TensorSource};

pub(super) fn quantize(
    mut graph: Graph,
    weights: &impl TensorSource,
) -> Result<Quantized, CheckpointError> {
    let mut tensors = BTreeMap::new();
    for initializer in &mut graph.initializers {
        let Some((tensor, _)) = matrix(initializer) else {
            continue;
        };
        if let Some(quantized) = narrow(tensor, weights)? {
            tensors.insert(initializer.name.clone(), quantized);
            initializer.element = Element::F16;
        }
    }
    graph.nodes = graph
        .nodes
        .into_iter()
        .flat_map(|node| widen(node, |input| tensors.contains_key(input)))
        .collect();
    Ok(Quantized {
        tensors: graph
            .initializers
            .iter()
            .filter_map(|i| tensors.remove(&i.name))
            .collect(),
        graph,
    })
}

/// The error of a tensor stored as f16; `None` where a value is outside the range of f16 and the
/// tensor stays f32.
fn narrow(
    tensor: &str,
    weights: &impl TensorSource,
) -> Result<Option<QuantizedTensor>, CheckpointError> {
    let source = weights.read(tensor)?.values;
    if source
        .iter()
        .any(|&value| f16::from_f32(value).is_infinite())
    {
        return Ok(None);
    }
    Ok(Some(distance(
        tensor,
        &source,
        source.iter().map(|&value| f16::from_f32(value).to_f32()),
    )))
}

/// A node with the casts that its f16 inputs need.
fn widen(mut node: Node, is_f16: impl Fn(&str) -> bool) -> Vec<Node> {
    if node.op == "Gather" && is_f16(&node.inputs[0]) {
        let output = std::mem::replace(&mut node.outputs[0], format!("{}/f16", node.name));
        let widened = cast(node.outputs[0].clone(), output);
        return vec![node, widened];
    }
    let mut nodes = Vec::new();
    for input in &mut node.inputs {
        if is_f16(input) {
            // The reader is part of the name: a matrix read twice is cast twice, and folded into
            // one constant when loaded.
            let widened = format!("{}/{input}/f32", node.name);
            nodes.push(cast(std::mem::replace(input, widened.clone()), widened));
        }
    }
    nodes.push(node);
    nodes
}

fn cast(input: String, output: String) -> Node {
    Node {
        op: "Cast",
        name: format!("{output}/Cast"),
        inputs: vec![input],
        outputs: vec![output],
        attributes: vec![("to", Attribute::Element(Element::F32))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Tensor;
    use crate::graph::builder::Builder;

    /// Every tensor is this one.
    struct Always(Vec<f32>);

    impl TensorSource for Always {
        fn read(&self, _: &str) -> Result<Tensor, CheckpointError> {
            Ok(Tensor {
                shape: vec![self.0.len(), 1],
                values: self.0.clone(),
            })
        }
    }

    fn graph() -> Graph {
        let mut build = Builder::new("g");
        let ids = build.input("ids", Element::I64, ["n".into()]);
        let table = build.weight("table", &[2, 1]);
        let rows = build.gather(&table, &ids);
        let y = build.linear(&rows, "w", [2, 1]);
        build.output("y", &y, Element::F32, ["n".into(), 2.into()]);
        build.finish()
    }

    #[test]
    fn matrices_are_cast_before_and_tables_after_their_use() {
        let quantized = quantize(graph(), &Always(vec![1.0, 0.1])).unwrap();
        let nodes: Vec<String> = quantized
            .graph
            .nodes
            .iter()
            .map(|n| format!("{} = {}({})", n.outputs[0], n.op, n.inputs.join(", ")))
            .collect();
        insta::assert_snapshot!(nodes.join("\n"), @r"
        /Gather.0/f16 = Gather(table, ids)
        /Gather.0 = Cast(/Gather.0/f16)
        /MatMul.1/w/f32 = Cast(w)
        /MatMul.1 = MatMul(/Gather.0, /MatMul.1/w/f32)
        y = Identity(/MatMul.1)
        ");
        assert_eq!(quantized.tensors.len(), 2);
        assert!(quantized.tensors[0].error_max > 0.0 && quantized.tensors[0].error_relative < 1e-3);
    }

    #[test]
    fn values_outside_f16_keep_their_tensor_f32() {
        let quantized = quantize(graph(), &Always(vec![1.0, 1e6])).unwrap();
        assert_eq!(quantized.graph, graph());
        assert!(quantized.tensors.is_empty());
    }
}
