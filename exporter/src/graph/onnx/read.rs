//! Reading: interface and operators as messages, weights as slices of the mapped files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path};

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use vlm::MappedFile;

use super::{EXTERNAL, OnnxError, element, field, proto};
use crate::graph::{Dim, Element, ValueInfo};

/// A graph file, mapped, and its external data if it has any.
#[derive(Debug)]
pub struct GraphFile {
    /// Graph name.
    pub name: String,
    /// Operator set of the default domain.
    pub opset: i64,
    /// Tensors that a caller passes in.
    pub inputs: Vec<ValueInfo>,
    /// Tensors that a caller gets back.
    pub outputs: Vec<ValueInfo>,
    /// How often each operator occurs, by name.
    pub operators: BTreeMap<String, usize>,
    map: MappedFile,
    external: Option<MappedFile>,
    constants: BTreeMap<String, StoredConstant>,
}

/// A constant of a graph file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Constant<'a> {
    /// Element type.
    pub element: Element,
    /// Dimensions; none for a scalar.
    pub dims: &'a [usize],
    /// Its values, little-endian, row-major.
    pub bytes: &'a [u8],
}

/// Where a constant is stored; the range is inside its file and as long as the dimensions say.
#[derive(Debug)]
struct StoredConstant {
    element: Element,
    dims: Vec<usize>,
    is_external: bool,
    range: Range<usize>,
}

impl GraphFile {
    /// Maps and reads a graph file.
    ///
    /// # Errors
    /// When a file cannot be read, is not an ONNX model, or holds what this program does not write.
    pub fn open(path: &Path) -> Result<Self, OnnxError> {
        let shown = path.display().to_string();
        let map = MappedFile::open(path).map_err(|source| OnnxError::Io {
            graph: shown.clone(),
            source,
        })?;
        let format = |diagnostic| OnnxError::Format {
            path: shown.clone(),
            diagnostic,
        };
        let external = match external_location(map.as_bytes()).map_err(format)? {
            Some(name) => {
                let data = path.with_file_name(&name);
                let shown = data.display().to_string();
                Some(MappedFile::open(&data).map_err(|source| OnnxError::Io {
                    graph: shown,
                    source,
                })?)
            }
            None => None,
        };
        parse(map, external).map_err(format)
    }

    /// A constant by name.
    pub fn constant(&self, name: &str) -> Option<Constant<'_>> {
        self.constants.get(name).map(|stored| self.resolve(stored))
    }

    /// Every constant, sorted by name.
    pub fn constants(&self) -> impl Iterator<Item = (&str, Constant<'_>)> {
        self.constants
            .iter()
            .map(|(name, stored)| (name.as_str(), self.resolve(stored)))
    }

    fn resolve<'a>(&'a self, stored: &'a StoredConstant) -> Constant<'a> {
        let file = self
            .external
            .as_ref()
            .filter(|_| stored.is_external)
            .unwrap_or(&self.map);
        Constant {
            element: stored.element,
            dims: &stored.dims,
            bytes: &file.as_bytes()[stored.range.clone()],
        }
    }
}

fn parse(map: MappedFile, external: Option<MappedFile>) -> Result<GraphFile, String> {
    let bytes = map.as_bytes();
    let model = proto::ModelProto::decode(bytes).map_err(not_a_model)?;
    let graph = model.graph.ok_or("not an ONNX model: it has no graph")?;
    let mut operators = BTreeMap::new();
    for node in &graph.node {
        *operators.entry(node.op_type.clone()).or_default() += 1;
    }
    let external_bytes = external.as_ref().map_or(0, |file| file.as_bytes().len());
    let mut constants = BTreeMap::new();
    // Messages and raw ranges come in the same order: both are the file's.
    for (tensor, raw) in graph.initializer.into_iter().zip(raw_ranges(bytes)?) {
        let name = tensor.name.clone();
        let stored = stored(tensor, raw, external_bytes)
            .map_err(|diagnostic| format!("constant {name:?}: {diagnostic}"))?;
        constants.insert(name, stored);
    }
    Ok(GraphFile {
        name: graph.name,
        opset: model
            .opset_import
            .iter()
            .find(|set| set.domain.is_empty())
            .map_or(0, |set| set.version),
        inputs: graph
            .input
            .into_iter()
            .map(value_info)
            .collect::<Result<_, _>>()?,
        outputs: graph
            .output
            .into_iter()
            .map(value_info)
            .collect::<Result<_, _>>()?,
        operators,
        external,
        constants,
        map,
    })
}

/// The name of the external data file, if any constant is in one; all of a graph's share it.
fn external_location(bytes: &[u8]) -> Result<Option<String>, String> {
    let model = proto::ModelProto::decode(bytes).map_err(not_a_model)?;
    let tensors = model
        .graph
        .map(|graph| graph.initializer)
        .unwrap_or_default();
    let mut names = tensors
        .iter()
        .filter(|tensor| tensor.data_location == EXTERNAL)
        .filter_map(|tensor| entry(tensor, "location"));
    let Some(name) = names.next() else {
        return Ok(None);
    };
    if names.any(|other| other != name) {
        return Err("its weights are in several files, expected one file".into());
    }
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(Some(name.to_owned())),
        _ => Err(format!(
            "its weights are in {name:?}, expected a file in the same folder"
        )),
    }
}

fn entry<'a>(tensor: &'a proto::TensorProto, key: &str) -> Option<&'a str> {
    tensor
        .external_data
        .iter()
        .find(|entry| entry.key == key)
        .map(|entry| entry.value.as_str())
}

fn stored(
    tensor: proto::TensorProto,
    raw: Option<Range<usize>>,
    external_bytes: usize,
) -> Result<StoredConstant, String> {
    let element = element(tensor.data_type).ok_or_else(|| {
        format!(
            "element type {} is not supported: expected one that this program writes",
            tensor.data_type
        )
    })?;
    let dims: Vec<usize> = tensor
        .dims
        .iter()
        .map(|&dim| {
            usize::try_from(dim).map_err(|_| format!("dimension {dim}, expected 0 or more"))
        })
        .collect::<Result<_, _>>()?;
    let bytes = dims
        .iter()
        .try_fold(element.bytes(), |bytes, &dim| bytes.checked_mul(dim))
        .ok_or("its dimensions overflow")?;
    let is_external = tensor.data_location == EXTERNAL;
    let range = if is_external {
        let number = |key: &str| entry(&tensor, key).and_then(|value| value.parse::<usize>().ok());
        let offset = number("offset").unwrap_or(0);
        let length = number("length").unwrap_or(bytes);
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= external_bytes);
        offset..end.ok_or_else(|| {
            format!(
                "{length} bytes at {offset} are outside the external data of {external_bytes} bytes"
            )
        })?
    } else {
        raw.unwrap_or(0..0)
    };
    if range.len() != bytes {
        return Err(format!(
            "{} bytes for dimensions {dims:?} {}, expected {bytes}",
            range.len(),
            element.as_str()
        ));
    }
    Ok(StoredConstant {
        element,
        dims,
        is_external,
        range,
    })
}

/// The `raw_data` range of each initializer, in file order; `None` where it has none.
fn raw_ranges(file: &[u8]) -> Result<Vec<Option<Range<usize>>>, String> {
    let mut ranges = Vec::new();
    for graph in fields(file, 0..file.len(), field::MODEL_GRAPH)? {
        for tensor in fields(file, graph, field::GRAPH_INITIALIZER)? {
            ranges.push(fields(file, tensor, field::TENSOR_RAW_DATA)?.pop());
        }
    }
    Ok(ranges)
}

/// The content ranges of one length-delimited field of the message at `message` in `file`.
fn fields(file: &[u8], message: Range<usize>, wanted: u32) -> Result<Vec<Range<usize>>, String> {
    let mut rest = &file[message.clone()];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (number, wire) = decode_key(&mut rest).map_err(not_a_model)?;
        if wire != WireType::LengthDelimited {
            skip_field(wire, number, &mut rest, DecodeContext::default()).map_err(not_a_model)?;
            continue;
        }
        let length = decode_varint(&mut rest).map_err(not_a_model)?;
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= rest.len())
            .ok_or("not an ONNX model: it is cut off")?;
        let from = message.end - rest.len();
        if number == wanted {
            found.push(from..from + length);
        }
        rest = &rest[length..];
    }
    Ok(found)
}

fn value_info(message: proto::ValueInfoProto) -> Result<ValueInfo, String> {
    let name = message.name;
    let tensor = message
        .r#type
        .and_then(|kind| kind.tensor_type)
        .ok_or_else(|| format!("{name:?} is not a tensor"))?;
    let element = element(tensor.elem_type).ok_or_else(|| {
        format!(
            "{name:?} has element type {}, expected one that this program writes",
            tensor.elem_type
        )
    })?;
    let dims = tensor
        .shape
        .unwrap_or_default()
        .dim
        .into_iter()
        .map(|dim| match dim.value {
            Some(proto::DimensionValue::Fixed(dim)) => {
                Dim::Fixed(usize::try_from(dim).unwrap_or(0))
            }
            Some(proto::DimensionValue::Symbol(symbol)) => Dim::Symbol(symbol),
            None => Dim::Symbol("?".into()),
        });
    Ok(ValueInfo {
        dims: dims.collect(),
        name,
        element,
    })
}

fn not_a_model(error: prost::DecodeError) -> String {
    format!("not an ONNX model: {error}")
}
