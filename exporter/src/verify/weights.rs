//! The constants of the graphs against the tensors of the checkpoint.
//!
//! Running the model does not show every weight: two that are swapped in a wide matrix change the
//! answer less than rounding does, and the embedding of a token that no probe has changes nothing.
//! So each tensor is also looked up in the graphs by name. The tables that are not tensors, and the
//! precision that the manifest states, are compared with the graphs too.

use std::path::Path;

use firmware_config::manifest::{Manifest, Precision};
use half::f16;

use super::{VerifyError, rotary};
use crate::arch::smolvlm::SmolVlm;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::graph::Element;
use crate::graph::onnx::{Constant, GraphFile};
use crate::quantize::scale_name;
use crate::report::{WeightComparison, WeightDifference};

/// Tolerance for a weight halfway between two integers, as a share of the scale.
const ROUNDING: f32 = 1e-3;

/// Compares every tensor of the model, as the builder names them, with the constants of the
/// bundle's graphs.
pub(super) fn compare(
    bundle: &Path,
    manifest: &Manifest,
    checkpoint: &Checkpoint,
    model: &SmolVlm,
) -> Result<WeightComparison, VerifyError> {
    // Every tensor, in each graph that has it.
    let graphs = manifest
        .graphs
        .try_map(|path| GraphFile::open(&bundle.join(path)))?;
    let mut weights = WeightComparison {
        tensors: 0,
        differ: Vec::new(),
    };
    let mut elements = Vec::new();
    for name in model.tensors().keys() {
        let tensor = checkpoint.tensor(name)?;
        let (mut is_held, mut diagnostic) = (false, None);
        for (_, graph) in graphs.iter() {
            let Some(constant) = graph.constant(name) else {
                continue;
            };
            is_held = true;
            elements.push(constant.element);
            // A tied head is in two graphs; the first difference is reported.
            if diagnostic.is_none() {
                diagnostic = difference(&tensor, &constant, scale(graph, name).as_deref());
            }
        }
        if !is_held {
            diagnostic = Some("in none of the graphs".to_owned());
        }
        weights.tensors += 1;
        weights
            .differ
            .extend(diagnostic.map(|diagnostic| WeightDifference {
                name: name.to_owned(),
                diagnostic,
            }));
    }
    // The tables that are not tensors, and the precision.
    weights.differ.extend(rotary::compare(
        &graphs.decoder_model_merged,
        &manifest.geometry.text,
        checkpoint,
    ));
    let found = precision(&elements);
    if found != manifest.precision {
        let diagnostic = format!(
            "manifest.json has {}, expected {} as in the graphs",
            manifest.precision.as_str(),
            found.as_str()
        );
        weights.differ.push(WeightDifference {
            name: "precision".into(),
            diagnostic,
        });
    }
    Ok(weights)
}

/// The precision, from the element types of all weights; some stay f32 in any precision.
fn precision(elements: &[Element]) -> Precision {
    match elements {
        elements if elements.contains(&Element::I8) => Precision::Int8,
        elements if elements.contains(&Element::F16) => Precision::Fp16,
        _ => Precision::Fp32,
    }
}

/// The scales of an integer constant, one for each output.
fn scale(graph: &GraphFile, name: &str) -> Option<Vec<f32>> {
    let constant = graph.constant(&scale_name(name))?;
    Some(values(&constant))
}

/// What is wrong with a constant that should hold `tensor`, as stored or transposed.
fn difference(tensor: &Tensor, constant: &Constant, scale: Option<&[f32]>) -> Option<String> {
    let stored = constant.dims == tensor.shape;
    let transposed = tensor.shape.len() == 2 && constant.dims == [tensor.shape[1], tensor.shape[0]];
    if !stored && !transposed {
        return Some(format!(
            "expected shape {:?}, got {:?}",
            tensor.shape, constant.dims
        ));
    }
    if constant.element == Element::I8 && scale.is_none() {
        return Some("integers without a constant of scales".into());
    }
    let got = values(constant);
    let rows = tensor.shape[0];
    let width = tensor.values.len() / rows.max(1);
    let is_held = |(i, &value): (usize, &f32), at: usize| {
        let got = got[at];
        match constant.element {
            Element::F16 => f16::from_f32(value).to_f32() == got,
            Element::I8 => scale
                .and_then(|scale| scale.get(i / width))
                .is_some_and(|s| (value - got * s).abs() <= s * (0.5 + ROUNDING)),
            _ => value == got,
        }
    };
    let wrong_stored = || {
        tensor
            .values
            .iter()
            .enumerate()
            .filter(|&(i, value)| !is_held((i, value), i))
            .count()
    };
    let wrong_transposed = || {
        tensor
            .values
            .iter()
            .enumerate()
            .filter(|&(i, value)| !is_held((i, value), i % width * rows + i / width))
            .count()
    };
    // A square matrix may have either layout.
    let wrong = [stored.then(wrong_stored), transposed.then(wrong_transposed)]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(0);
    (wrong > 0).then(|| {
        format!(
            "{wrong} of {} values are not the checkpoint's",
            tensor.values.len()
        )
    })
}

fn values(constant: &Constant) -> Vec<f32> {
    match constant.element {
        Element::F32 => constant
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect(),
        Element::F16 => constant
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f16::from_le_bytes(bytes).to_f32())
            .collect(),
        Element::I64 => constant
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| i64::from_le_bytes(bytes) as f32)
            .collect(),
        Element::I8 => constant
            .bytes
            .iter()
            .map(|&byte| f32::from(byte.cast_signed()))
            .collect(),
        Element::Bool => constant.bytes.iter().map(|&byte| f32::from(byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor {
            shape: shape.into(),
            values: values.into(),
        }
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn a_matrix_is_recognised_as_stored_and_transposed() {
        let weight = tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let stored = bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let transposed = bytes(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let constant = |dims: &'static [usize], bytes| Constant {
            element: Element::F32,
            dims,
            bytes,
        };
        assert_eq!(difference(&weight, &constant(&[2, 3], &stored), None), None);
        assert_eq!(
            difference(&weight, &constant(&[3, 2], &transposed), None),
            None
        );
        assert_eq!(
            difference(&weight, &constant(&[3, 2], &stored), None).as_deref(),
            Some("4 of 6 values are not the checkpoint's")
        );
        assert_eq!(
            difference(&weight, &constant(&[6], &stored), None).as_deref(),
            Some("expected shape [2, 3], got [6]")
        );
    }

    #[test]
    fn integers_hold_values_within_half_a_step() {
        let weight = tensor(&[2, 1], &[1.0, -0.26]);
        let of = |integers: &[u8]| {
            difference(
                &weight,
                &Constant {
                    element: Element::I8,
                    dims: &[2, 1],
                    bytes: integers,
                },
                Some(&[0.5, 0.5]),
            )
        };
        assert_eq!(of(&[2, (-1i8).cast_unsigned()]), None);
        assert_eq!(
            of(&[2, 0]).as_deref(),
            Some("1 of 2 values are not the checkpoint's")
        );
        assert_eq!(
            difference(
                &weight,
                &Constant {
                    element: Element::I8,
                    dims: &[2, 1],
                    bytes: &[2, 0]
                },
                None
            )
            .as_deref(),
            Some("integers without a constant of scales")
        );
    }
}
