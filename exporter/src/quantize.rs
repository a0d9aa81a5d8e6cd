//! Precision passes: graph in, graph out. The arithmetic on values is separate from the changes to
//! the graph.

mod fp16;
mod int8;

use firmware_config::manifest::{Precision, QuantizedTensor};

use crate::checkpoint::CheckpointError;
use crate::graph::{Graph, Initializer, Layout, TensorSource, Values};

/// A graph in another precision, and the error of each of its matrices.
#[derive(Debug)]
pub struct Quantized {
    /// The graph.
    pub graph: Graph,
    /// One entry for each matrix that changed, in graph order.
    pub tensors: Vec<QuantizedTensor>,
}

/// Turns an fp32 graph into `precision`. `takes_int8` selects the matrices that become 8-bit.
///
/// # Errors
/// When a weight cannot be read.
pub fn quantize(
    graph: Graph,
    precision: Precision,
    weights: &impl TensorSource,
    takes_int8: impl Fn(&str) -> bool,
) -> Result<Quantized, CheckpointError> {
    match precision {
        Precision::Fp32 => Ok(Quantized {
            graph,
            tensors: Vec::new(),
        }),
        Precision::Fp16 => fp16::quantize(graph, weights),
        Precision::Int8 => int8::quantize(graph, weights, takes_int8),
    }
}

/// Name of the constant that holds the scales of an integer matrix, one for each output.
pub(crate) fn scale_name(matrix: &str) -> String {
    format!("{matrix}_scale")
}

/// The checkpoint tensor behind an initializer, if it is a matrix or a convolution kernel.
fn matrix(initializer: &Initializer) -> Option<(&str, Layout)> {
    match &initializer.values {
        Values::Tensor { tensor, layout } if initializer.dims.len() >= 2 => Some((tensor, *layout)),
        _ => None,
    }
}

/// How far `stored` is from `source`, value by value.
fn distance(name: &str, source: &[f32], stored: impl Iterator<Item = f32>) -> QuantizedTensor {
    let (mut error_max, mut error_square, mut square) = (0f32, 0f64, 0f64);
    for (&source, stored) in source.iter().zip(stored) {
        let error = (source - stored).abs();
        error_max = error_max.max(error);
        error_square += f64::from(error).powi(2);
        square += f64::from(source).powi(2);
    }
    let error_relative = if square > 0.0 {
        (error_square / square).sqrt() as f32
    } else {
        0.0
    };
    QuantizedTensor {
        name: name.into(),
        error_max,
        error_relative,
    }
}
