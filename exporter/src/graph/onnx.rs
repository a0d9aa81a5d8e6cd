//! Graphs as ONNX files. Only this folder knows protobuf; none of its messages leave it.
//!
//! ```text
//! ModelProto = version, producer, opset ‖ graph key, graph length ‖
//!     GraphProto = name, inputs, outputs, nodes ‖ for each initializer: key, length ‖ name, type, dims ‖ raw_data key, length ‖ bytes
//! ```
//!
//! A graph above [`INLINE_BYTES_MAX`] keeps its weights in a second file (external data), since a
//! protobuf message ends at 2 GiB.

mod proto;
mod read;
mod write;

use std::io;

pub use read::{Constant, GraphFile};
pub use write::{INLINE_BYTES_MAX, needs_external_data, write};

use super::Element;
use crate::checkpoint::CheckpointError;

/// The operator set graphs are written in: `Gelu` came with 20, and ONNX Runtime reads it since
/// 1.18.
pub const OPSET: i64 = 20;
/// The format version that goes with it.
const IR_VERSION: i64 = 9;

/// Numbers of the fields that are encoded and skipped by hand, so that weights are not copied.
mod field {
    pub(super) const MODEL_GRAPH: u32 = 7;
    pub(super) const GRAPH_INITIALIZER: u32 = 5;
    pub(super) const TENSOR_RAW_DATA: u32 = 9;
}

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// `TensorProto.DataType`.
const CODES: [(Element, i32); 5] = [
    (Element::F32, 1),
    (Element::I8, 3),
    (Element::I64, 7),
    (Element::Bool, 9),
    (Element::F16, 10),
];

fn code(element: Element) -> i32 {
    CODES
        .iter()
        .find(|(known, _)| *known == element)
        .map(|(_, code)| *code)
        .expect("every element type has a code")
}

fn element(code: i32) -> Option<Element> {
    CODES
        .iter()
        .find(|(_, known)| *known == code)
        .map(|(element, _)| *element)
}

impl OnnxError {
    /// Whether a file could not be written or read, rather than holding what cannot be used.
    pub(crate) fn is_io(&self) -> bool {
        match self {
            OnnxError::Io { .. } => true,
            OnnxError::Weights(error) => error.is_io(),
            OnnxError::Format { .. } => false,
        }
    }
}

/// Why a graph was not written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file cannot be written or read.
    #[error("graph {graph}: {source}")]
    Io {
        /// Graph name or path.
        graph: String,
        /// The system's error.
        source: io::Error,
    },
    /// A weight cannot be read from the checkpoint.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The file is not an ONNX graph, or not one that this program writes.
    #[error("{path}: {diagnostic}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        diagnostic: String,
    },
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::checkpoint::Tensor;
    use crate::graph::builder::Builder;
    use crate::graph::{Graph, TensorSource};

    /// A single 2x3 matrix.
    struct OneMatrix;

    impl TensorSource for OneMatrix {
        fn read(&self, _: &str) -> Result<Tensor, CheckpointError> {
            Ok(Tensor {
                shape: vec![2, 3],
                values: vec![1., 2., 3., 4., 5., 6.],
            })
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linear.onnx");
        write(
            &graph(),
            &OneMatrix,
            &mut File::create(&path).unwrap(),
            None,
        )
        .unwrap();
        let file = GraphFile::open(&path).unwrap();
        assert_eq!((file.name.as_str(), file.opset), ("linear", OPSET));
        assert_eq!(
            (file.inputs.clone(), file.outputs.clone()),
            (graph().inputs, graph().outputs)
        );
        assert_eq!(
            file.operators.clone().into_iter().collect::<Vec<_>>(),
            [("Identity".into(), 1), ("MatMul".into(), 1)]
        );
        let transposed: Vec<u8> = [1f32, 4., 2., 5., 3., 6.]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let constants: Vec<_> = file.constants().collect();
        assert_eq!(
            constants,
            [(
                "w",
                Constant {
                    element: Element::F32,
                    dims: &[3, 2],
                    bytes: &transposed
                }
            )]
        );
    }

    #[test]
    fn large_weights_go_to_their_own_file_small_constants_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (path, data) = (
            folder.path().join("g.onnx"),
            folder.path().join("g.onnx_data"),
        );
        let mut build = Builder::new("external");
        let small = build.ints(&[1, 2]);
        let large = build.floats(&[1024], &vec![1.0; 1024]);
        let larger = build.floats(&[2048], &vec![2.0; 2048]);
        for (name, value) in [("a", &small), ("b", &large), ("c", &larger)] {
            build.output(name, value, Element::F32, []);
        }
        let mut sink = File::create(&data).unwrap();
        write(
            &build.finish(),
            &OneMatrix,
            &mut File::create(&path).unwrap(),
            Some(("g.onnx_data", &mut sink)),
        )
        .unwrap();
        assert_eq!(data.metadata().unwrap().len(), 4096 + 8192);
        assert!(path.metadata().unwrap().len() < 1024);
        let file = GraphFile::open(&path).unwrap();
        assert_eq!(file.constant(&small).unwrap().bytes[8], 2);
        assert_eq!(
            file.constant(&larger).unwrap().bytes[..4],
            2f32.to_le_bytes()
        );

        std::fs::write(&data, [0; 100]).unwrap();
        let error = GraphFile::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("4096 bytes at 0 are outside the external data of 100 bytes"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_not_a_model_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no.onnx");
        for (content, says) in [
            (&b"\xff\xff\xff"[..], "not an ONNX model: "),
            (b"", "not an ONNX model: it has no graph"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = GraphFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
