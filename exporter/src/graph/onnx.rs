//! Graphs as ONNX files: streamed out, and read back for inspection.
//!
//! ```text
//! ModelProto = version, producer, opset ‖ graph key, graph length ‖
//!     GraphProto = name, inputs, outputs, nodes ‖ for each initializer: key, length ‖ name, type, dims ‖ raw_data key, length ‖ bytes
//! ```
//!
//! Every length is known before a weight is read, so a graph of gigabytes is written holding one tensor. A graph above
//! [`INLINE_BYTES_MAX`] keeps its weights in a second file, since protobuf ends at 2 GiB.

use std::io::{self, Write};
use std::path::Path;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use vlm::mapped::MappedFile;

use super::{Attribute, Dim, Element, Graph, Initializer, Layout, Node, ValueInfo, Values, Weights, proto, transpose};
use crate::checkpoint::CheckpointError;

/// The operator set graphs are written in: `Gelu` came with 20, and every fleet runtime since ONNX Runtime 1.18 reads it.
pub const OPSET: i64 = 20;
/// The format version that goes with it.
const IR_VERSION: i64 = 9;

/// Weights beyond this many bytes go to a file of their own.
pub const INLINE_BYTES_MAX: u64 = 1 << 30;
/// Constants up to this size stay in the graph even then: shape inference reads them.
const INLINE_CONSTANT_BYTES: usize = 1024;
/// External tensors start at multiples of this, so that a mapped file can be used in place.
const EXTERNAL_ALIGNMENT: u64 = 4096;

/// Numbers of the two fields that are written by hand.
const MODEL_GRAPH: u32 = 7;
const GRAPH_INITIALIZER: u32 = 5;
const TENSOR_RAW_DATA: u32 = 9;
const LOCATION_EXTERNAL: i32 = 1;

/// Why a graph was not written or not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file cannot be written or read.
    #[error("graph {graph}: {source}")]
    Io {
        /// Graph name or path.
        graph: String,
        /// The system's words.
        source: io::Error,
    },
    /// A weight cannot be read from the checkpoint.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The file is no ONNX graph, or none that this program writes.
    #[error("{path}: {problem}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Whether a graph's weights need a file of their own.
pub fn needs_external_data(graph: &Graph) -> bool {
    graph.initializer_bytes() > INLINE_BYTES_MAX
}

/// Writes a graph to `file`. With `external`, large weights go there instead, as the file of that name beside the graph.
///
/// # Errors
/// When a weight cannot be read or a file cannot be written.
pub fn write(
    graph: &Graph,
    weights: &impl Weights,
    file: &mut impl Write,
    external: Option<(&str, &mut dyn Write)>,
) -> Result<(), OnnxError> {
    let io = |source| OnnxError::Io { graph: graph.name.clone(), source };
    let places = places(graph, external.as_ref().map(|(name, _)| *name));
    let heads: Vec<Vec<u8>> = graph.initializers.iter().zip(&places).map(|(initializer, place)| head(initializer, place)).collect();
    let rest = graph_message(graph).encode_to_vec();
    let graph_bytes = rest.len() + heads.iter().zip(&graph.initializers).zip(&places).map(|((h, i), p)| framed_len(h, i, p)).sum::<usize>();

    let mut start = model_message().encode_to_vec();
    encode_key(MODEL_GRAPH, WireType::LengthDelimited, &mut start);
    encode_varint(graph_bytes as u64, &mut start);
    file.write_all(&start).map_err(io)?;
    file.write_all(&rest).map_err(io)?;
    let mut external = external.map(|(_, sink)| (sink, 0u64));
    for ((initializer, place), head) in graph.initializers.iter().zip(&places).zip(&heads) {
        let bytes = bytes(initializer, weights)?;
        let mut frame = Vec::new();
        encode_key(GRAPH_INITIALIZER, WireType::LengthDelimited, &mut frame);
        encode_varint(tensor_len(head, initializer, place) as u64, &mut frame);
        frame.extend(head);
        match (&place.external, &mut external) {
            (Some((_, offset)), Some((sink, position))) => {
                file.write_all(&frame).map_err(io)?;
                let padding = vec![0; usize::try_from(offset - *position).expect("less than the alignment")];
                sink.write_all(&padding).and_then(|()| sink.write_all(&bytes)).map_err(io)?;
                *position = offset + bytes.len() as u64;
            }
            _ => {
                encode_key(TENSOR_RAW_DATA, WireType::LengthDelimited, &mut frame);
                encode_varint(bytes.len() as u64, &mut frame);
                file.write_all(&frame).and_then(|()| file.write_all(&bytes)).map_err(io)?;
            }
        }
    }
    Ok(())
}

/// Where an initializer's bytes go.
struct Place {
    /// File name and offset; `None` inside the graph.
    external: Option<(String, u64)>,
}

fn places(graph: &Graph, external: Option<&str>) -> Vec<Place> {
    let mut end = 0u64;
    let mut place = |initializer: &Initializer| {
        let Some(name) = external.filter(|_| initializer.bytes() > INLINE_CONSTANT_BYTES) else { return Place { external: None } };
        let offset = end.next_multiple_of(EXTERNAL_ALIGNMENT);
        end = offset + initializer.bytes() as u64;
        Place { external: Some((name.to_owned(), offset)) }
    };
    graph.initializers.iter().map(&mut place).collect()
}

/// A tensor's message up to its bytes.
fn head(initializer: &Initializer, place: &Place) -> Vec<u8> {
    let entry = |key: &str, value: String| proto::Entry { key: key.into(), value };
    let external_data = place.external.as_ref().map_or_else(Vec::new, |(name, offset)| {
        vec![entry("location", name.clone()), entry("offset", offset.to_string()), entry("length", initializer.bytes().to_string())]
    });
    proto::Tensor {
        dims: initializer.dims.iter().map(|&dim| dim as i64).collect(),
        data_type: code(initializer.element),
        name: initializer.name.clone(),
        data_location: if external_data.is_empty() { 0 } else { LOCATION_EXTERNAL },
        external_data,
    }
    .encode_to_vec()
}

fn tensor_len(head: &[u8], initializer: &Initializer, place: &Place) -> usize {
    let raw = initializer.bytes();
    let inline = if place.external.is_some() { 0 } else { 1 + prost::length_delimiter_len(raw) + raw };
    head.len() + inline
}

fn framed_len(head: &[u8], initializer: &Initializer, place: &Place) -> usize {
    let len = tensor_len(head, initializer, place);
    1 + prost::length_delimiter_len(len) + len
}

/// The bytes of one initializer, in its layout and element type.
fn bytes<'a>(initializer: &'a Initializer, weights: &impl Weights) -> Result<std::borrow::Cow<'a, [u8]>, CheckpointError> {
    let (tensor, layout) = match &initializer.values {
        Values::Literal(bytes) => return Ok(bytes.into()),
        Values::Tensor { tensor, layout } => (weights.read(tensor)?, layout),
    };
    let values = match (layout, tensor.shape.as_slice()) {
        (Layout::Transposed, &[rows, columns]) => transpose(&tensor.values, rows, columns),
        _ => tensor.values,
    };
    let bytes: Vec<u8> = match initializer.element {
        Element::F16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    assert_eq!(bytes.len(), initializer.bytes(), "{}: the builder took its shape from the checkpoint", initializer.name);
    Ok(bytes.into())
}

fn model_message() -> proto::Model {
    proto::Model {
        ir_version: IR_VERSION,
        producer_name: "egret-export".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: None,
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
    }
}

/// A graph without its initializers.
fn graph_message(graph: &Graph) -> proto::Graph {
    proto::Graph {
        node: graph.nodes.iter().map(node_message).collect(),
        name: graph.name.clone(),
        initializer: Vec::new(),
        input: graph.inputs.iter().map(value_message).collect(),
        output: graph.outputs.iter().map(value_message).collect(),
    }
}

fn node_message(node: &Node) -> proto::Node {
    proto::Node {
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        name: node.name.clone(),
        op_type: node.op.into(),
        attribute: node.attributes.iter().map(|(name, value)| attribute_message(name, value)).collect(),
        domain: String::new(),
    }
}

fn attribute_message(name: &str, value: &Attribute) -> proto::Attribute {
    let mut message = proto::Attribute { name: name.into(), ..proto::Attribute::default() };
    match value {
        Attribute::Float(value) => (message.f, message.r#type) = (Some(*value), 1),
        Attribute::Int(value) => (message.i, message.r#type) = (Some(*value), 2),
        Attribute::Text(value) => (message.s, message.r#type) = (Some(value.as_bytes().to_vec()), 3),
        Attribute::Ints(values) => (message.ints, message.r#type) = (values.clone(), 7),
    }
    message
}

fn value_message(value: &ValueInfo) -> proto::ValueInfo {
    let dimension = |dim: &Dim| proto::Dimension {
        value: Some(match dim {
            Dim::Fixed(dim) => proto::DimensionValue::Fixed(*dim as i64),
            Dim::Symbol(symbol) => proto::DimensionValue::Symbol(symbol.clone()),
        }),
    };
    let shape = proto::Shape { dim: value.dims.iter().map(dimension).collect() };
    let tensor_type = proto::TensorType { elem_type: code(value.element), shape: Some(shape) };
    proto::ValueInfo { name: value.name.clone(), r#type: Some(proto::Type { tensor_type: Some(tensor_type) }) }
}

/// `TensorProto.DataType`.
const CODES: [(Element, i32); 5] = [(Element::F32, 1), (Element::I8, 3), (Element::I64, 7), (Element::Bool, 9), (Element::F16, 10)];

fn code(element: Element) -> i32 {
    CODES.iter().find(|(known, _)| *known == element).map(|(_, code)| *code).expect("every element type has a code")
}

/// What a graph file holds, without its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Graph name.
    pub name: String,
    /// Operator set of the default domain.
    pub opset: i64,
    /// What a caller feeds.
    pub inputs: Vec<ValueInfo>,
    /// What a caller gets.
    pub outputs: Vec<ValueInfo>,
    /// How often each operator stands in it, by name.
    pub operators: std::collections::BTreeMap<String, usize>,
    /// Number of initializers.
    pub initializers: usize,
}

/// Reads a graph file for inspection; weights stay on disk.
///
/// # Errors
/// When the file cannot be read, is no ONNX model, or has element types this program does not write.
pub fn read(path: &Path) -> Result<Summary, OnnxError> {
    let shown = path.display().to_string();
    let map = MappedFile::open(path).map_err(|source| OnnxError::Io { graph: shown.clone(), source })?;
    summarize(map.as_bytes()).map_err(|problem| OnnxError::Format { path: shown, problem })
}

fn summarize(bytes: &[u8]) -> Result<Summary, String> {
    let model = proto::Model::decode(bytes).map_err(|error| format!("no ONNX model: {error}"))?;
    let graph = model.graph.ok_or("no ONNX model: it has no graph")?;
    let opset = model.opset_import.iter().find(|set| set.domain.is_empty()).map_or(0, |set| set.version);
    let mut operators = std::collections::BTreeMap::new();
    for node in &graph.node {
        *operators.entry(node.op_type.clone()).or_default() += 1;
    }
    Ok(Summary {
        opset,
        operators,
        initializers: graph.initializer.len(),
        inputs: graph.input.into_iter().map(value_info).collect::<Result<_, _>>()?,
        outputs: graph.output.into_iter().map(value_info).collect::<Result<_, _>>()?,
        name: graph.name,
    })
}

fn value_info(message: proto::ValueInfo) -> Result<ValueInfo, String> {
    let name = message.name;
    let tensor = message.r#type.and_then(|kind| kind.tensor_type).ok_or_else(|| format!("{name:?} is no tensor"))?;
    let element = CODES.iter().find(|(_, code)| *code == tensor.elem_type).map(|(element, _)| *element);
    let element = element.ok_or_else(|| format!("{name:?} has element type {}, which this program does not write", tensor.elem_type))?;
    let dims = tensor.shape.unwrap_or_default().dim.into_iter().map(|dim| match dim.value {
        Some(proto::DimensionValue::Fixed(dim)) => Dim::Fixed(usize::try_from(dim).unwrap_or(0)),
        Some(proto::DimensionValue::Symbol(symbol)) => Dim::Symbol(symbol),
        None => Dim::Symbol("?".into()),
    });
    Ok(ValueInfo { dims: dims.collect(), name, element })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Tensor;
    use crate::graph::builder::Builder;

    /// A single 2x3 matrix.
    struct OneMatrix;

    impl Weights for OneMatrix {
        fn read(&self, _: &str) -> Result<Tensor, CheckpointError> {
            Ok(Tensor { shape: vec![2, 3], values: vec![1., 2., 3., 4., 5., 6.] })
        }
    }

    fn graph() -> Graph {
        let mut build = Builder::new("linear");
        let x = build.input("x", Element::F32, ["batch".into(), 3.into()]);
        let y = build.linear(&x, "w", [2, 3]);
        build.output("y", &y, Element::F32, ["batch".into(), 2.into()]);
        build.finish()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut file = Vec::new();
        write(&graph(), &OneMatrix, &mut file, None).unwrap();
        let summary = summarize(&file).unwrap();
        assert_eq!(summary.name, "linear");
        assert_eq!(summary.opset, OPSET);
        assert_eq!((summary.inputs, summary.outputs), (graph().inputs, graph().outputs));
        assert_eq!(summary.operators.into_iter().collect::<Vec<_>>(), [("Identity".into(), 1), ("MatMul".into(), 1)]);
        let transposed: Vec<u8> = [1f32, 4., 2., 5., 3., 6.].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(file.windows(transposed.len()).any(|window| window == transposed), "weights are stored [in, out]");
    }

    #[test]
    fn large_weights_go_to_their_own_file_small_constants_stay() {
        let mut build = Builder::new("external");
        let small = build.ints(&[1, 2]);
        let large = build.floats(&[1024], &vec![1.0; 1024]);
        let larger = build.floats(&[2048], &vec![2.0; 2048]);
        for (name, value) in [("a", &small), ("b", &large), ("c", &larger)] {
            build.output(name, value, Element::F32, []);
        }
        let (mut file, mut data) = (Vec::new(), Vec::new());
        write(&build.finish(), &OneMatrix, &mut file, Some(("external.onnx_data", &mut data))).unwrap();
        assert_eq!(data.len(), 4096 + 8192);
        assert_eq!(data[4096..4100], 2f32.to_le_bytes());
        assert!(file.len() < 1024, "{} bytes", file.len());
        assert_eq!(summarize(&file).unwrap().initializers, 3);
    }

    #[test]
    fn what_is_no_model_is_an_error() {
        assert!(summarize(b"\xff\xff\xff").unwrap_err().starts_with("no ONNX model"));
        assert_eq!(summarize(b"").unwrap_err(), "no ONNX model: it has no graph");
    }
}
