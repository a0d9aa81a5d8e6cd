//! The header of a safetensors file, read from bytes that may lie.
//!
//! The `safetensors` crate is the judge: size limit, offsets in order and without holes, shapes
//! that do not overflow. Its verdicts do not always say which tensor was meant, so a refused header
//! is looked through once more for the words of the error.

use std::collections::BTreeMap;
use std::ops::Range;

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

/// Bytes of the length that every file starts with.
const LENGTH_BYTES: usize = 8;

/// One tensor of a header.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Byte range in the whole file, inside it.
    pub(super) bytes: Range<usize>,
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Fewer bytes than the length of a header takes.
    #[error("{bytes} bytes long, a safetensors file has at least 8")]
    TooShort {
        /// Length of the file.
        bytes: usize,
    },
    /// The header is longer than the file or than any honest header.
    #[error(
        "its header claims {claimed} bytes, the file has {bytes} and no header may exceed 100,000,000"
    )]
    Length {
        /// What the first eight bytes say.
        claimed: u64,
        /// Length of the file.
        bytes: usize,
    },
    /// A tensor's byte range is not where the one before it ends, runs backwards, or overlaps.
    #[error(
        "tensor {tensor:?} claims bytes {from}..{to}, which do not follow the tensor before it"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Start of its range in the data part.
        from: usize,
        /// End of its range in the data part.
        to: usize,
    },
    /// A tensor's byte range is not as long as its shape.
    #[error("tensor {tensor:?} of shape {shape:?} {dtype} claims bytes {from}..{to}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        shape: Vec<usize>,
        /// Its type.
        dtype: String,
        /// Start of its range in the data part.
        from: usize,
        /// End of its range in the data part.
        to: usize,
    },
    /// The tensors end elsewhere than the file.
    #[error("its tensors need {needed} bytes of data, the file has {present}")]
    Data {
        /// Where the last tensor ends.
        needed: usize,
        /// Bytes behind the header.
        present: usize,
    },
    /// Anything else the format forbids.
    #[error("no safetensors header: {0}")]
    Format(SafeTensorError),
}

/// Reads and checks the header of a whole file.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<String, Entry>, HeaderError> {
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(file).map_err(|error| explain(file, error))?;
    let data = LENGTH_BYTES + header_bytes;
    let entry = |info: &TensorInfo| Entry {
        dtype: info.dtype,
        shape: info.shape.clone(),
        bytes: data + info.data_offsets.0..data + info.data_offsets.1,
    };
    Ok(metadata
        .tensors()
        .into_iter()
        .map(|(tensor, info)| (tensor, entry(info)))
        .collect())
}

/// Finds the tensor and the numbers behind a refusal.
fn explain(file: &[u8], error: SafeTensorError) -> HeaderError {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return HeaderError::TooShort { bytes: file.len() };
    };
    let claimed = u64::from_le_bytes(*length);
    match &error {
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            return HeaderError::Length {
                claimed,
                bytes: file.len(),
            };
        }
        SafeTensorError::InvalidOffset(_)
        | SafeTensorError::TensorInvalidInfo
        | SafeTensorError::ValidationOverflow
        | SafeTensorError::MetadataIncompleteBuffer => {}
        _ => return HeaderError::Format(error),
    }
    let Some((header, data)) = usize::try_from(claimed)
        .ok()
        .and_then(|n| rest.split_at_checked(n))
    else {
        return HeaderError::Format(error);
    };
    let mut tensors = entries(header);
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    for (tensor, info) in tensors {
        let (from, to) = info.data_offsets;
        if from != end || to < from {
            return HeaderError::Offsets { tensor, from, to };
        }
        if size(&info) != Some(to - from) {
            return HeaderError::Size {
                tensor,
                shape: info.shape,
                dtype: info.dtype.to_string(),
                from,
                to,
            };
        }
        end = to;
    }
    if end != data.len() {
        return HeaderError::Data {
            needed: end,
            present: data.len(),
        };
    }
    HeaderError::Format(error)
}

/// The tensors of a header that the crate could parse but did not accept.
fn entries(header: &[u8]) -> Vec<(String, TensorInfo)> {
    let fields: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap_or_default();
    fields
        .into_iter()
        .filter_map(|(tensor, info)| Some((tensor, serde_json::from_value(info).ok()?)))
        .collect()
}

/// Bytes that a shape takes, unless they overflow.
fn size(info: &TensorInfo) -> Option<usize> {
    let values = info
        .shape
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    Some(values.checked_mul(info.dtype.bitsize())? / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data_bytes, 0);
        file
    }

    fn refusal(file: &[u8]) -> String {
        read(file)
            .expect_err("a lying header is refused")
            .to_string()
    }

    #[test]
    fn an_honest_header_gives_ranges_in_the_file() {
        let header = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
        let tensors = read(&file(header, 8)).unwrap();
        assert_eq!(tensors["w"].shape, [2, 1]);
        assert_eq!(tensors["w"].bytes, 8 + header.len()..16 + header.len());
    }

    #[test]
    fn every_lie_is_named() {
        struct Case {
            lie: &'static str,
            header: &'static str,
            data_bytes: usize,
            says: &'static str,
        }
        let cases = [
            Case {
                lie: "offsets past the end",
                header: r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
                data_bytes: 8,
                says: "its tensors need 16 bytes of data, the file has 8",
            },
            Case {
                lie: "bytes that no tensor claims",
                header: r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
                data_bytes: 20,
                says: "its tensors need 16 bytes of data, the file has 20",
            },
            Case {
                lie: "overlapping",
                header: r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                data_bytes: 12,
                says: r#"tensor "b" claims bytes 4..12, which do not follow the tensor before it"#,
            },
            Case {
                lie: "reversed",
                header: r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
                data_bytes: 8,
                says: r#"tensor "w" claims bytes 8..0, which do not follow the tensor before it"#,
            },
            Case {
                lie: "a shape whose product overflows",
                header: r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#,
                data_bytes: 8,
                says: r#"tensor "w" of shape [4294967296, 4294967296, 4] F32 claims bytes 0..8"#,
            },
            Case {
                lie: "a shape of another size",
                header: r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                data_bytes: 8,
                says: r#"tensor "w" of shape [3] F32 claims bytes 0..8"#,
            },
        ];
        for case in cases {
            assert_eq!(
                refusal(&file(case.header, case.data_bytes)),
                case.says,
                "{}",
                case.lie
            );
        }
    }

    #[test]
    fn a_header_of_a_terabyte_is_refused_unread() {
        let mut file = (1u64 << 40).to_le_bytes().to_vec();
        file.extend([b'{'; 24]);
        insta::assert_snapshot!(refusal(&file), @"its header claims 1099511627776 bytes, the file has 32 and no header may exceed 100,000,000");
    }

    #[test]
    fn short_and_meaningless_files_are_refused() {
        insta::assert_snapshot!(refusal(b"abc"), @"3 bytes long, a safetensors file has at least 8");
        assert!(refusal(&file("{\"w\":", 0)).starts_with("no safetensors header: "));
    }
}
