use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::strict;

/// Results that openai-agents 0.24.0 gives, in its order of fields.
#[test]
fn schemas_become_what_openai_agents_makes_of_them() {
    let cases = [
        (
            json!({}),
            json!({"additionalProperties": false, "type": "object", "properties": {}, "required": []}),
        ),
        (
            json!({"properties": {"b": {"type": "string", "default": null}, "a": {"properties": {}}}}),
            json!({
                "properties": {
                    "b": {"type": "string"},
                    "a": {"properties": {}, "type": "object", "additionalProperties": false, "required": []},
                },
                "type": "object",
                "additionalProperties": false,
                "required": ["b", "a"],
            }),
        ),
        (
            json!({"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}, {"properties": {}}]}}}),
            json!({
                "type": "object",
                "properties": {"a": {"anyOf": [
                    {"type": "string"},
                    {"properties": {}, "type": "object", "additionalProperties": false, "required": []},
                ]}},
                "additionalProperties": false,
                "required": ["a"],
            }),
        ),
        (
            json!({"type": "object", "allOf": [{"$ref": "#/$defs/A", "title": "t"}], "$defs": {
                "A": {"$ref": "#/$defs/B", "title": "hidden", "description": "d"},
                "B": {"properties": {"x": {"type": "string"}}},
            }}),
            json!({
                "title": "t",
                "description": "d",
                "properties": {"x": {"type": "string"}},
                "type": "object",
                "additionalProperties": false,
                "required": ["x"],
                "$defs": {
                    "A": {
                        "title": "hidden",
                        "description": "d",
                        "properties": {"x": {"type": "string"}},
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["x"],
                    },
                    "B": {
                        "properties": {"x": {"type": "string"}},
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["x"],
                    },
                },
            }),
        ),
        (
            json!({
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/a~1b%20c", "description": "d"}, "b": {"$ref": "#/$defs/a~1b%20c"}},
                "$defs": {"a/b c": {"type": "array", "items": {"properties": {}}}},
            }),
            json!({
                "type": "object",
                "properties": {
                    "a": {
                        "description": "d",
                        "type": "array",
                        "items": {"properties": {}, "type": "object", "additionalProperties": false, "required": []},
                    },
                    "b": {"$ref": "#/$defs/a~1b%20c"},
                },
                "$defs": {"a/b c": {
                    "type": "array",
                    "items": {"properties": {}, "type": "object", "additionalProperties": false, "required": []},
                }},
                "additionalProperties": false,
                "required": ["a", "b"],
            }),
        ),
        // It refers to itself, but in the end says nothing of itself.
        (
            json!({"type": "object", "$defs": {"A": {"$ref": "#/$defs/A", "description": "x"}}}),
            json!({"type": "object", "$defs": {"A": {"description": "x"}}, "additionalProperties": false}),
        ),
    ];
    for (schema, expected) in cases {
        let strict = strict(&schema.to_string());
        // As texts: the order counts.
        assert_eq!(strict.map(|strict| strict.to_string()), Ok(expected.to_string()), "{schema}");
    }
}

#[test]
fn the_short_form_is_written_out_and_requires_everything() {
    let short = json!({
        "title": "Answer",
        "properties": [
            {"name": "verdict", "description": "yes or no", "schema": {"type": "string", "enum": ["yes", "no"]}},
            {"name": "lines", "schema": {"type": "array", "items": {"type": "integer"}, "description": "where"}},
        ],
        "required": ["verdict"],
    });
    let expected = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "verdict": {"type": "string", "enum": ["yes", "no"], "description": "yes or no"},
            "lines": {"type": "array", "description": "where", "items": {"type": "integer"}},
        },
        "title": "Answer",
        "required": ["verdict", "lines"],
    });
    assert_eq!(strict(&short.to_string()), Ok(expected));
}

#[test]
fn what_cannot_be_strict_is_refused_with_its_place() {
    let cyclic = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A", "title": "t"}},
        "$defs": {"A": {"properties": {"again": {"$ref": "#/$defs/A", "title": "t"}}}}});
    let chain = json!({"type": "object", "properties": {"a": {"allOf": [{"$ref": "#/$defs/A"}]}},
        "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}});
    let cases = [
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
        (r#"{"type": "string"}"#, "its type must be \"object\""),
        (r#"{"type": ["object", "null"]}"#, "its type must be \"object\""),
        (r#"{"type": "object", "oneOf": [{}]}"#, "is a choice"),
        (
            r#"{"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {}}}}"#,
            "#/properties/a allows properties that it does not declare",
        ),
        (r#"{"type": "object", "properties": {"a": true}}"#, "#/properties/a is not a JSON object"),
        (
            r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/No", "title": "t"}}}"##,
            "leads to no schema",
        ),
        (
            r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/A", "minLength": 1}}, "$defs": {"A": {}}}"##,
            "\"minLength\" beside a $ref",
        ),
        (r#"{"type": "object", "allOf": [{"type": "string"}]}"#, "contradicts it in type"),
        (r#"{"properties": []}"#, "has no properties"),
        (
            r#"{"properties": [{"name": "a", "schema": {"type": "object"}}]}"#,
            "for the property \"a\"",
        ),
        (
            r#"{"properties": [{"name": "a", "schema": {"type": "string"}}], "required": ["b"]}"#,
            "requires \"b\"",
        ),
        (&cyclic.to_string(), "refers to itself"),
        (&chain.to_string(), "leads back to itself"),
    ];
    for (schema, fault) in cases {
        let refusal = strict(schema).unwrap_err();
        assert!(refusal.contains(fault), "{schema}: {refusal}");
    }
}

#[test]
fn a_small_schema_that_grows_without_end_is_refused_soon() {
    let mut defs = Map::new();
    defs.insert("D0".to_owned(), json!({"properties": {"x": {"type": "string"}}}));
    for level in 1..40 {
        let below = json!({"$ref": format!("#/$defs/D{}", level - 1), "description": "twice each"});
        defs.insert(format!("D{level}"), json!({"properties": {"a": below, "b": below}}));
    }
    let schema = json!({"type": "object", "$defs": defs});
    assert!(strict(&schema.to_string()).unwrap_err().contains("too large"));

    let nested = (0..100).fold(json!({}), |below, _| json!({"items": below}));
    let schema = json!({"type": "object", "properties": {"a": nested}});
    assert!(strict(&schema.to_string()).unwrap_err().contains("nested deeper"));
}

fn schema() -> impl Strategy<Value = Value> {
    let reference = prop_oneof![
        Just("#/$defs/A"),
        Just("#/$defs/B"),
        Just("#/properties/a"),
        Just("#/$defs/A/properties/a"),
    ];
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!({"type": "string", "default": null})),
        Just(json!({"type": ["object", "null"]})),
        reference.clone().prop_map(|to| json!({"$ref": to})),
        reference.prop_map(|to| json!({"$ref": to, "description": "d"})),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            prop::collection::btree_map("[ab]", inner.clone(), 0..3)
                .prop_map(|properties| json!({"properties": properties})),
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            (
                prop_oneof![Just("anyOf"), Just("oneOf"), Just("allOf"), Just("properties")],
                prop::collection::vec(inner, 0..3)
            )
                .prop_map(|(keyword, schemas)| json!({"title": "t", keyword: schemas})),
        ]
    })
}

proptest! {
    #[test]
    fn a_strict_schema_stays_as_it_is(
        a in schema(), b in schema(), def_a in schema(), def_b in schema(),
    ) {
        let schema = json!({
            "type": "object",
            "properties": {"a": a, "b": b},
            "$defs": {"A": def_a, "B": def_b},
        });
        if let Ok(once) = strict(&schema.to_string()) {
            prop_assert_eq!(strict(&once.to_string()), Ok(once));
        }
    }

    #[test]
    fn any_text_is_an_answer_or_a_fault(text in r#"[\{\}\[\]",:a-z$#/0-9 ]{0,60}"#) {
        let _ = strict(&text);
    }
}
