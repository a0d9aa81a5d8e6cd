//! Writing: every length is known before a weight is read, so a graph of gigabytes is streamed
//! holding one tensor.

use std::io::Write;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::{EXTERNAL, IR_VERSION, OPSET, OnnxError, code, field, proto};
use crate::checkpoint::CheckpointError;
use crate::graph::{
    Attribute, Dim, Element, Graph, Initializer, Layout, Node, TensorSource, ValueInfo, Values,
    transpose,
};

/// Weights beyond this many bytes go to a file of their own.
pub const INLINE_BYTES_MAX: u64 = 1 << 30;
/// Constants up to this size stay in the graph even then: shape inference reads them.
const INLINE_CONSTANT_BYTES: usize = 1024;
/// External tensors start at multiples of this, so that a mapped file can be used in place.
const EXTERNAL_ALIGNMENT: u64 = 4096;

/// Whether a graph's weights need a file of their own.
pub fn needs_external_data(graph: &Graph) -> bool {
    graph.initializer_bytes() > INLINE_BYTES_MAX
}

/// Writes a graph to `file`. With `external`, large weights go there instead, as the file of that
/// name beside the graph.
///
/// # Errors
/// When a weight cannot be read or a file cannot be written.
pub fn write(
    graph: &Graph,
    weights: &impl TensorSource,
    file: &mut impl Write,
    external: Option<(&str, &mut dyn Write)>,
) -> Result<(), OnnxError> {
    let io = |source| OnnxError::Io {
        graph: graph.name.clone(),
        source,
    };
    // Lengths first: they come before the bytes they count.
    let locations = locations(graph, external.as_ref().map(|(name, _)| *name));
    let heads: Vec<Vec<u8>> = graph
        .initializers
        .iter()
        .zip(&locations)
        .map(|(initializer, location)| head(initializer, location))
        .collect();
    let rest = graph_message(graph).encode_to_vec();
    let graph_bytes = rest.len()
        + heads
            .iter()
            .zip(&graph.initializers)
            .zip(&locations)
            .map(|((head, initializer), location)| framed_len(head, initializer, location))
            .sum::<usize>();

    // The model, then the graph up to its initializers.
    let mut start = model_message().encode_to_vec();
    encode_key(field::MODEL_GRAPH, WireType::LengthDelimited, &mut start);
    encode_varint(graph_bytes as u64, &mut start);
    file.write_all(&start).map_err(io)?;
    file.write_all(&rest).map_err(io)?;
    // Then the initializers, one at a time, with their bytes here or in the external data.
    let mut external = external.map(|(_, sink)| (sink, 0u64));
    for ((initializer, location), head) in graph.initializers.iter().zip(&locations).zip(&heads) {
        let bytes = bytes(initializer, weights)?;
        let mut frame = Vec::new();
        encode_key(
            field::GRAPH_INITIALIZER,
            WireType::LengthDelimited,
            &mut frame,
        );
        encode_varint(tensor_len(head, initializer, location) as u64, &mut frame);
        frame.extend(head);
        match (&location.external, &mut external) {
            (Some((_, offset)), Some((sink, position))) => {
                file.write_all(&frame).map_err(io)?;
                let padding =
                    vec![0; usize::try_from(offset - *position).expect("less than the alignment")];
                sink.write_all(&padding)
                    .and_then(|()| sink.write_all(&bytes))
                    .map_err(io)?;
                *position = offset + bytes.len() as u64;
            }
            _ => {
                encode_key(
                    field::TENSOR_RAW_DATA,
                    WireType::LengthDelimited,
                    &mut frame,
                );
                encode_varint(bytes.len() as u64, &mut frame);
                file.write_all(&frame)
                    .and_then(|()| file.write_all(&bytes))
                    .map_err(io)?;
            }
        }
    }
    Ok(())
}

/// Where an initializer's bytes go.
struct DataLocation {
    /// File name and offset; `None` inside the graph.
    external: Option<(String, u64)>,
}

fn locations(graph: &Graph, external: Option<&str>) -> Vec<DataLocation> {
    let mut end = 0u64;
    let mut location = |initializer: &Initializer| {
        let Some(name) = external.filter(|_| initializer.bytes() > INLINE_CONSTANT_BYTES) else {
            return DataLocation { external: None };
        };
        let offset = end.next_multiple_of(EXTERNAL_ALIGNMENT);
        end = offset + initializer.bytes() as u64;
        DataLocation {
            external: Some((name.to_owned(), offset)),
        }
    };
    graph.initializers.iter().map(&mut location).collect()
}

/// A tensor's message up to its bytes.
fn head(initializer: &Initializer, location: &DataLocation) -> Vec<u8> {
    let entry = |key: &str, value: String| proto::StringStringEntryProto {
        key: key.into(),
        value,
    };
    let external_data = location
        .external
        .as_ref()
        .map_or_else(Vec::new, |(name, offset)| {
            vec![
                entry("location", name.clone()),
                entry("offset", offset.to_string()),
                entry("length", initializer.bytes().to_string()),
            ]
        });
    proto::TensorProto {
        dims: initializer.dims.iter().map(|&dim| dim as i64).collect(),
        data_type: code(initializer.element),
        name: initializer.name.clone(),
        data_location: if external_data.is_empty() {
            0
        } else {
            EXTERNAL
        },
        external_data,
    }
    .encode_to_vec()
}

fn tensor_len(head: &[u8], initializer: &Initializer, location: &DataLocation) -> usize {
    let raw = initializer.bytes();
    let inline = if location.external.is_some() {
        0
    } else {
        1 + prost::length_delimiter_len(raw) + raw
    };
    head.len() + inline
}

fn framed_len(head: &[u8], initializer: &Initializer, location: &DataLocation) -> usize {
    let len = tensor_len(head, initializer, location);
    1 + prost::length_delimiter_len(len) + len
}

/// The bytes of one initializer, in its layout and element type.
fn bytes<'a>(
    initializer: &'a Initializer,
    weights: &impl TensorSource,
) -> Result<std::borrow::Cow<'a, [u8]>, CheckpointError> {
    let (tensor, layout) = match &initializer.values {
        Values::Literal(bytes) => return Ok(bytes.into()),
        Values::Tensor { tensor, layout } => (weights.read(tensor)?, layout),
    };
    let values = match (layout, tensor.shape.as_slice()) {
        (Layout::Transposed, &[rows, columns]) => transpose(&tensor.values, rows, columns),
        _ => tensor.values,
    };
    let bytes: Vec<u8> = match initializer.element {
        Element::F16 => values
            .iter()
            .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
            .collect(),
        _ => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    };
    assert_eq!(
        bytes.len(),
        initializer.bytes(),
        "{}: the builder took its shape from the checkpoint",
        initializer.name
    );
    Ok(bytes.into())
}

fn model_message() -> proto::ModelProto {
    proto::ModelProto {
        ir_version: IR_VERSION,
        producer_name: "egret-export".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: None,
        opset_import: vec![proto::OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
    }
}

/// A graph without its initializers.
fn graph_message(graph: &Graph) -> proto::GraphProto {
    proto::GraphProto {
        node: graph.nodes.iter().map(node_message).collect(),
        name: graph.name.clone(),
        initializer: Vec::new(),
        input: graph.inputs.iter().map(value_message).collect(),
        output: graph.outputs.iter().map(value_message).collect(),
    }
}

fn node_message(node: &Node) -> proto::NodeProto {
    proto::NodeProto {
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        name: node.name.clone(),
        op_type: node.op.into(),
        attribute: node
            .attributes
            .iter()
            .map(|(name, value)| attribute_message(name, value))
            .collect(),
        domain: String::new(),
    }
}

fn attribute_message(name: &str, value: &Attribute) -> proto::AttributeProto {
    let mut message = proto::AttributeProto {
        name: name.into(),
        ..proto::AttributeProto::default()
    };
    match value {
        Attribute::Float(value) => (message.f, message.r#type) = (Some(*value), 1),
        Attribute::Int(value) => (message.i, message.r#type) = (Some(*value), 2),
        Attribute::Element(element) => {
            (message.i, message.r#type) = (Some(i64::from(code(*element))), 2)
        }
        Attribute::Text(value) => {
            (message.s, message.r#type) = (Some(value.as_bytes().to_vec()), 3)
        }
        Attribute::Ints(values) => (message.ints, message.r#type) = (values.clone(), 7),
    }
    message
}

fn value_message(value: &ValueInfo) -> proto::ValueInfoProto {
    let dimension = |dim: &Dim| proto::DimensionProto {
        value: Some(match dim {
            Dim::Fixed(dim) => proto::DimensionValue::Fixed(*dim as i64),
            Dim::Symbol(symbol) => proto::DimensionValue::Symbol(symbol.clone()),
        }),
    };
    let shape = proto::TensorShapeProto {
        dim: value.dims.iter().map(dimension).collect(),
    };
    let tensor_type = proto::TensorTypeProto {
        elem_type: code(value.element),
        shape: Some(shape),
    };
    proto::ValueInfoProto {
        name: value.name.clone(),
        r#type: Some(proto::TypeProto {
            tensor_type: Some(tensor_type),
        }),
    }
}
