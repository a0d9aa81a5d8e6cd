//! Graphs: what the exporter builds, quantizes and writes.
//!
//! A graph is owned data in topological order. Weights are named, not held: an [`Initializer`]
//! names a checkpoint tensor and its layout, and the bytes are made while the file is written. A
//! whole model is never in memory.

pub mod builder;
pub mod onnx;

use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};

/// One ONNX graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    /// Graph name, as published.
    pub name: String,
    /// Tensors that a caller passes in.
    pub inputs: Vec<ValueInfo>,
    /// Tensors that a caller gets back.
    pub outputs: Vec<ValueInfo>,
    /// Constants and weights.
    pub initializers: Vec<Initializer>,
    /// Operators in topological order.
    pub nodes: Vec<Node>,
}

/// A named tensor at the edge of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueInfo {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Dimensions.
    pub dims: Vec<Dim>,
}

/// One dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A symbolic size, the same wherever the name occurs.
    Symbol(String),
}

impl From<usize> for Dim {
    fn from(dim: usize) -> Self {
        Dim::Fixed(dim)
    }
}

impl From<&str> for Dim {
    fn from(symbol: &str) -> Self {
        Dim::Symbol(symbol.into())
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Fixed(dim) => write!(f, "{dim}"),
            Dim::Symbol(symbol) => write!(f, "{symbol}"),
        }
    }
}

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 64-bit integer.
    I64,
    /// 8-bit integer.
    I8,
    /// Boolean.
    Bool,
}

impl Element {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Element::I64 => 8,
            Element::F32 => 4,
            Element::F16 => 2,
            Element::I8 | Element::Bool => 1,
        }
    }

    /// `f32`, `f16`, `i64`, `i8` or `bool`.
    pub fn as_str(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::I64 => "i64",
            Element::I8 => "i8",
            Element::Bool => "bool",
        }
    }
}

/// One operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// ONNX operator of the default domain.
    pub op: &'static str,
    /// Unique name: the name of its first output.
    pub name: String,
    /// Tensors read.
    pub inputs: Vec<String>,
    /// Tensors written.
    pub outputs: Vec<String>,
    /// Attributes in the order written.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// Integer.
    Int(i64),
    /// List of integers.
    Ints(Vec<i64>),
    /// Float.
    Float(f32),
    /// Text.
    Text(&'static str),
    /// Element type.
    Element(Element),
}

/// A constant of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Initializer {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Dimensions; none for a scalar.
    pub dims: Vec<usize>,
    /// Where its values come from.
    pub values: Values,
}

impl Initializer {
    /// Length of its values in bytes.
    pub fn bytes(&self) -> usize {
        self.dims.iter().product::<usize>() * self.element.bytes()
    }
}

/// Where the values of an initializer come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Little-endian values, here.
    Literal(Vec<u8>),
    /// A checkpoint tensor, read when the graph is written; f32 or f16.
    Tensor {
        /// Its name in the checkpoint.
        tensor: String,
        /// How it is laid out here.
        layout: Layout,
    },
}

/// Layout of a checkpoint tensor in a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in the checkpoint.
    Stored,
    /// A matrix stored [out, in], turned to [in, out] for `MatMul`.
    Transposed,
}

/// Where the values of tensors are read from while a graph is quantized or written.
pub trait TensorSource {
    /// The values of a tensor, row-major.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, tensor: &str) -> Result<Tensor, CheckpointError>;
}

impl TensorSource for Checkpoint {
    fn read(&self, tensor: &str) -> Result<Tensor, CheckpointError> {
        self.tensor(tensor)
    }
}

impl Graph {
    /// The checkpoint tensors that it reads, with their shapes as stored there; one that is read in
    /// two layouts comes twice.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Vec<usize>)> {
        self.initializers
            .iter()
            .filter_map(|initializer| match &initializer.values {
                Values::Literal(_) => None,
                Values::Tensor { tensor, layout } => {
                    let mut shape = initializer.dims.clone();
                    if *layout == Layout::Transposed {
                        shape.reverse();
                    }
                    Some((tensor.as_str(), shape))
                }
            })
    }

    /// Bytes of all constants together.
    pub fn initializer_bytes(&self) -> u64 {
        self.initializers
            .iter()
            .map(|initializer| initializer.bytes() as u64)
            .sum()
    }
}

/// Turns a row-major [rows, columns] matrix into [columns, rows].
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    /// Side of a block that stays in the cache while both sides are walked.
    const BLOCK: usize = 32;
    assert_eq!(
        values.len(),
        rows * columns,
        "a matrix has rows times columns values"
    );
    let mut turned = vec![0.0; values.len()];
    for from_row in (0..rows).step_by(BLOCK) {
        for from_column in (0..columns).step_by(BLOCK) {
            for row in from_row..rows.min(from_row + BLOCK) {
                for column in from_column..columns.min(from_column + BLOCK) {
                    turned[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn transpose_turns_rows_to_columns() {
        assert_eq!(
            transpose(&[1., 2., 3., 4., 5., 6.], 2, 3),
            [1., 4., 2., 5., 3., 6.]
        );
    }

    proptest! {
        #[test]
        fn transposing_twice_changes_nothing(rows in 1usize..80, columns in 1usize..80) {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            prop_assert_eq!(transpose(&transpose(&values, rows, columns), columns, rows), values);
        }
    }
}
