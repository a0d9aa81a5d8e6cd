//! Which of a checkpoint's files say how images and clips are prepared, in transformers' own order.
//!
//! | | first | then | last |
//! |---|---|---|---|
//! | images | `processor_config.json`'s `image_processor` | `preprocessor_config.json` | |
//! | clips | `processor_config.json`'s `video_processor` | `video_preprocessor_config.json` | `preprocessor_config.json` |
//!
//! A folder that newer transformers saved into keeps its older files, so a later one in this order
//! may be stale.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::{PREPROCESSOR, PROCESSOR, VIDEO_PREPROCESSOR};
use crate::checkpoint::json::read_json;

/// Where the rules of a checkpoint are.
#[derive(Debug)]
pub(crate) struct Processor {
    /// All of `processor_config.json`.
    pub(crate) own: Section,
    pub(crate) images: Section,
    pub(crate) clips: Section,
}

/// A JSON object in a file; empty where no file has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Section {
    /// The file; `None` where no file has it and the family's defaults apply.
    pub(crate) path: Option<PathBuf>,
    /// The object's key in the file, where it is not the whole file.
    key: Option<&'static str>,
    fields: Map<String, Value>,
}

impl Processor {
    pub(crate) fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let own = Section::file(dir, PROCESSOR)?;
        let first = |choices: [Option<Section>; 3]| {
            choices.into_iter().flatten().next().unwrap_or_default()
        };
        let file = |name: &str| {
            Section::file(dir, name).map(|section| section.path.is_some().then_some(section))
        };
        let preprocessor = file(PREPROCESSOR)?;
        Ok(Processor {
            images: first([own.inner("image_processor")?, preprocessor.clone(), None]),
            clips: first([
                own.inner("video_processor")?,
                file(VIDEO_PREPROCESSOR)?,
                preprocessor,
            ]),
            own,
        })
    }
}

impl Section {
    /// A whole file; empty if it is missing.
    fn file(dir: &Path, name: &str) -> Result<Self, CheckpointError> {
        let path = dir.join(name);
        if !path.exists() {
            return Ok(Section::default());
        }
        let fields = read_json(&path)?;
        Ok(Section {
            path: Some(path),
            key: None,
            fields,
        })
    }

    /// The object under a key, if there is one.
    fn inner(&self, key: &'static str) -> Result<Option<Self>, CheckpointError> {
        let fields: Option<Map<String, Value>> = self.field(key, "an object")?;
        Ok(fields.map(|fields| Section {
            path: self.path.clone(),
            key: Some(key),
            fields,
        }))
    }

    /// Whether it is in the file of this name.
    pub(crate) fn is_in(&self, name: &str) -> bool {
        self.path.as_ref().is_some_and(|path| path.ends_with(name))
    }

    /// A field's value; `None` where it is missing or null.
    pub(crate) fn field<T: DeserializeOwned>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, CheckpointError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(found) => match serde_json::from_value(found.clone()) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(self.diagnostic(format!("{name} is {found}, expected {expected}"))),
            },
        }
    }

    /// An error about a field, with its file and key.
    pub(crate) fn diagnostic(&self, diagnostic: String) -> CheckpointError {
        let path = self.path.clone().unwrap_or_else(|| PREPROCESSOR.into());
        let diagnostic = match self.key {
            Some(key) => format!("{key}.{diagnostic}"),
            None => diagnostic,
        };
        CheckpointError::Json { path, diagnostic }
    }

    /// A file and a key, for people.
    pub(crate) fn origin(&self) -> String {
        let file = self
            .path
            .as_ref()
            .and_then(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned());
        match (file, self.key) {
            (None, _) => "the family's defaults".into(),
            (Some(file), None) => file,
            (Some(file), Some(key)) => format!("{file}, {key}"),
        }
    }

    #[cfg(test)]
    pub(crate) fn of(fields: Value) -> Self {
        let Value::Object(fields) = fields else {
            panic!("an object")
        };
        Section {
            path: Some(PREPROCESSOR.into()),
            key: None,
            fields,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn newer_files_take_precedence() {
        struct Case {
            files: &'static [(&'static str, &'static str)],
            images: &'static str,
            clips: &'static str,
        }
        let cases = [
            Case {
                files: &[],
                images: "the family's defaults",
                clips: "the family's defaults",
            },
            Case {
                files: &[(PROCESSOR, "{}"), (PREPROCESSOR, "{}")],
                images: PREPROCESSOR,
                clips: PREPROCESSOR,
            },
            Case {
                files: &[(PREPROCESSOR, "{}"), (VIDEO_PREPROCESSOR, "{}")],
                images: PREPROCESSOR,
                clips: VIDEO_PREPROCESSOR,
            },
            Case {
                files: &[
                    (
                        PROCESSOR,
                        r#"{"image_processor": {}, "video_processor": {}}"#,
                    ),
                    (PREPROCESSOR, "{}"),
                    (VIDEO_PREPROCESSOR, "{}"),
                ],
                images: "processor_config.json, image_processor",
                clips: "processor_config.json, video_processor",
            },
            Case {
                files: &[
                    (
                        PROCESSOR,
                        r#"{"image_processor": {}, "video_processor": null}"#,
                    ),
                    (PREPROCESSOR, "{}"),
                ],
                images: "processor_config.json, image_processor",
                clips: PREPROCESSOR,
            },
        ];
        for Case {
            files,
            images,
            clips,
        } in cases
        {
            let dir = tempfile::tempdir().unwrap();
            for (name, content) in files {
                fs::write(dir.path().join(name), content).unwrap();
            }
            let processor = Processor::read(dir.path()).unwrap();
            assert_eq!(
                (
                    processor.images.origin().as_str(),
                    processor.clips.origin().as_str()
                ),
                (images, clips),
                "{files:?}"
            );
        }
    }

    #[test]
    fn a_field_of_another_type_is_reported_with_its_file_and_key() {
        let section = Section {
            key: Some("image_processor"),
            ..Section::of(json!({ "resample": "lanczos" }))
        };
        let error = section
            .field::<u32>("resample", "a number")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "preprocessor_config.json: image_processor.resample is \"lanczos\", expected a number"
        );
    }
}
