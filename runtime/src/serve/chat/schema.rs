//! The JSON schemas that `response_format` may have: an object with exactly one required property,
//! a string with an `enum`. Pure.
//!
//! Such a schema is a question with candidates, whatever the name of the property: the values of
//! the `enum` are scored, and the reply is the object.

use serde_json::{Value, json};
use vlm::CANDIDATES_MAX;

use crate::openai::ApiError;
use crate::openai::request::ResponseFormat;

/// Longest `enum` value, in characters.
const ANSWER_CHARS_MAX: usize = 1024;

/// The object that an answer with candidates is given in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnumObject {
    /// The required property.
    pub property: String,
    /// Its values.
    pub answers: Vec<String>,
}

impl EnumObject {
    /// The reply's content: the object with `answer` as its property.
    pub fn content(&self, answer: &str) -> String {
        json!({ &self.property: answer }).to_string()
    }
}

/// The form that `response_format` asks for; `None` is plain text.
///
/// # Errors
/// 400 for any other form.
pub fn read(format: Option<&ResponseFormat>) -> Result<Option<EnumObject>, ApiError> {
    let Some(format) = format else {
        return Ok(None);
    };
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_schema" => {
            let schema = format
                .json_schema
                .as_ref()
                .and_then(|named| named.schema.as_ref());
            let schema = schema.ok_or_else(|| refuse("json_schema.schema is missing"))?;
            enum_object(schema).map(Some).map_err(|what| refuse(&what))
        }
        other => Err(refuse(&format!("type {other:?} is not supported"))),
    }
}

fn refuse(what: &str) -> ApiError {
    let message = format!(
        "{what}; supported are text, and json_schema with an object schema whose only required property is a string with an enum, \
         such as {{\"type\":\"object\",\"properties\":{{\"answer\":{{\"type\":\"string\",\"enum\":[\"yes\",\"no\"]}}}},\"required\":[\"answer\"]}}"
    );
    ApiError::bad_request("response_format", message)
}

fn enum_object(schema: &Value) -> Result<EnumObject, String> {
    if schema.get("type") != Some(&json!("object")) {
        return Err("the schema is not of type object".to_owned());
    }
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let [property] = required[..] else {
        return Err(format!(
            "expected exactly one required property, got {}: {}",
            required.len(),
            required.join(", ")
        ));
    };
    let declared = schema
        .get("properties")
        .and_then(|properties| properties.get(property));
    let declared =
        declared.ok_or_else(|| format!("the required property {property:?} is not declared"))?;
    let declared = resolve(declared, schema)?;
    if declared.get("type").is_some_and(|kind| kind != "string") {
        return Err(format!("property {property:?} is not of type string"));
    }
    let Some(values) = declared.get("enum").and_then(Value::as_array) else {
        return Err(format!("property {property:?} has no enum"));
    };
    let answers = values.iter().map(answer).collect::<Option<Vec<_>>>();
    let answers = answers.ok_or_else(|| {
        format!(
            "an enum value of {property:?} is not a string of 1 to {ANSWER_CHARS_MAX} characters"
        )
    })?;
    if answers.is_empty() || answers.len() > CANDIDATES_MAX {
        return Err(format!(
            "property {property:?} has {} enum values, expected 1 to {CANDIDATES_MAX}",
            answers.len()
        ));
    }
    for (at, answer) in answers.iter().enumerate() {
        if answers[..at]
            .iter()
            .any(|earlier| earlier.trim() == answer.trim())
        {
            return Err(format!(
                "enum value {answer:?} of {property:?} occurs twice"
            ));
        }
    }
    Ok(EnumObject {
        property: property.to_owned(),
        answers,
    })
}

fn answer(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    (!text.trim().is_empty() && text.chars().count() <= ANSWER_CHARS_MAX).then(|| text.to_owned())
}

/// Follows one `#/…` reference: pydantic writes an enum class as one.
fn resolve<'a>(declared: &'a Value, schema: &'a Value) -> Result<&'a Value, String> {
    let Some(reference) = declared.get("$ref").and_then(Value::as_str) else {
        return Ok(declared);
    };
    let target = reference
        .strip_prefix('#')
        .and_then(|pointer| schema.pointer(pointer));
    target.ok_or_else(|| format!("$ref {reference:?} points to nothing"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read_schema(schema: Value) -> Result<Option<EnumObject>, ApiError> {
        read(Some(
            &serde_json::from_value(
                json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
            )
            .unwrap(),
        ))
    }

    #[test]
    fn an_enum_is_accepted_whatever_its_property_is_called() {
        for schema in [
            json!({"type": "object", "properties": {"farbe": {"type": "string", "enum": ["rot", "blau"]}}, "required": ["farbe"]}),
            json!({"type": "object", "properties": {"farbe": {"enum": ["rot", "blau"]}, "note": {"type": "string"}}, "required": ["farbe"]}),
            json!({"type": "object", "required": ["farbe"], "properties": {"farbe": {"$ref": "#/$defs/F"}},
                   "$defs": {"F": {"type": "string", "enum": ["rot", "blau"]}}}),
        ] {
            let form = read_schema(schema).unwrap().unwrap();
            assert_eq!(
                form,
                EnumObject {
                    property: "farbe".into(),
                    answers: vec!["rot".into(), "blau".into()]
                }
            );
            assert_eq!(form.content("rot"), r#"{"farbe":"rot"}"#);
        }
    }

    /// `count` different answers.
    fn numbers(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    #[test]
    fn as_many_answers_are_accepted_as_can_be_scored() {
        let schema = json!({"type": "object", "properties": {"a": {"enum": numbers(CANDIDATES_MAX)}}, "required": ["a"]});
        assert_eq!(
            read_schema(schema).unwrap().unwrap().answers.len(),
            CANDIDATES_MAX
        );
    }

    #[test]
    fn other_schemas_are_refused_with_field_and_reason() {
        let string = json!({"type": "string"});
        let two = json!({"type": "string", "enum": ["a", "b"]});
        let refusals = [
            json!({"type": "array"}),
            json!({"type": "object", "properties": {}}),
            json!({"type": "object", "properties": {"a": two, "b": two}, "required": ["a", "b"]}),
            json!({"type": "object", "properties": {"a": string}, "required": ["a"]}),
            json!({"type": "object", "properties": {"a": {"type": "integer", "enum": [1, 2]}}, "required": ["a"]}),
            json!({"type": "object", "properties": {"a": {"enum": ["x", 2]}}, "required": ["a"]}),
            json!({"type": "object", "properties": {"a": {"enum": ["x", "x "]}}, "required": ["a"]}),
            json!({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}),
            json!({"type": "object", "properties": {"a": {"enum": numbers(CANDIDATES_MAX + 1)}}, "required": ["a"]}),
            json!({"type": "object", "properties": {}, "required": ["a"]}),
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/F"}}, "required": ["a"]}),
        ]
        .map(|schema| {
            let error = read_schema(schema).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("response_format")));
            error.message.split(';').next().unwrap().to_owned()
        });
        insta::assert_snapshot!(refusals.join("\n"), @r##"
        the schema is not of type object
        expected exactly one required property, got 0: 
        expected exactly one required property, got 2: a, b
        property "a" has no enum
        property "a" is not of type string
        an enum value of "a" is not a string of 1 to 1024 characters
        enum value "x " of "a" occurs twice
        property "a" has 0 enum values, expected 1 to 64
        property "a" has 65 enum values, expected 1 to 64
        the required property "a" is not declared
        $ref "#/$defs/F" points to nothing
        "##);
    }

    #[test]
    fn json_object_is_refused_and_text_is_text() {
        let kind = |kind: &str| {
            read(Some(
                &serde_json::from_value(json!({ "type": kind })).unwrap(),
            ))
        };
        assert_eq!(kind("text"), Ok(None));
        assert_eq!(
            kind("json_object").unwrap_err().param.as_deref(),
            Some("response_format")
        );
        assert_eq!(
            kind("json_schema").unwrap_err().param.as_deref(),
            Some("response_format")
        );
    }
}
