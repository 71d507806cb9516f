//! What a turn is given reaches the model: texts, images, and the schema of its answer.

use crate::support::{Sidecar, prompt, text};
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use serde_json::{Value, json};

#[tokio::test]
async fn texts_are_joined_and_images_reach_the_model() {
    let sidecar = Sidecar::start().await;
    let image = sidecar.place.path().join("dot.png");
    std::fs::write(&image, DOT).unwrap();
    let image_url = format!("data:image/png;base64,{DOT_BASE64}");
    let mut request = prompt("images", "");
    request.inputs = vec![
        text("  first "),
        pb::UserInput {
            input: Some(pb::user_input::Input::LocalImage(pb::LocalImage {
                path: image.display().to_string(),
            })),
        },
        text("second"),
        pb::UserInput { input: Some(pb::user_input::Input::ImageUrl(image_url.clone())) },
        text("[[show /input]]"),
    ];
    let told = sidecar.run(request).await;
    let input: Value = serde_json::from_str(told.final_response()).unwrap();
    let message = input.as_array().unwrap().last().unwrap();
    assert_eq!(message["role"], "user", "{message:#}");
    let parts = message["content"].as_array().unwrap();
    let joined = "first\n\nsecond\n\n[[show /input]]";
    assert!(parts.iter().any(|part| part["text"] == joined), "{parts:#?}");
    let images: Vec<&str> = parts.iter().filter_map(|part| part["image_url"].as_str()).collect();
    assert_eq!(images.len(), 2, "{parts:#?}");
    assert!(images.iter().all(|url| url.starts_with("data:image/png;base64,")), "{parts:#?}");
    let (_, said) = told.item("user_message", |kind| match kind {
        Kind::UserMessage(message) => Some(message),
        _ => None,
    });
    assert_eq!(said.inputs.len(), 3, "{said:#?}");
    // Without its data: the caller has them.
    let shown = format!("data:image/png;base64,… ({} bytes)", DOT.len());
    let shown = pb::user_input::Input::ImageUrl(shown);
    assert!(said.inputs.contains(&pb::UserInput { input: Some(shown) }), "{said:#?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn an_output_schema_reaches_the_model_made_strict_and_for_this_turn_only() {
    let sidecar = Sidecar::start().await;
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "object", "properties": {"tag": {"type": "string"}}}}}}"#;
    let short = r#"{"title": "Answer", "properties": [
        {"name": "summary", "description": "In a sentence", "schema": {"type": "string"}}]}"#;
    let with_schema = |schema: &str| pb::RunTurnRequest {
        turn_options: Some(pb::TurnOptions {
            output_schema: schema.to_owned(),
            ..Default::default()
        }),
        ..prompt("a", "")
    };
    let format = sidecar.shown("/text/format", with_schema(schema)).await;
    assert_eq!(
        (format["type"].as_str(), format["strict"].as_bool()),
        (Some("json_schema"), Some(true))
    );
    let object = &format["schema"];
    assert_eq!(object["additionalProperties"], false, "{object:#}");
    assert_eq!(object["required"], json!(["name", "tags"]));
    let inner = &object["properties"]["tags"]["items"];
    assert_eq!(inner["additionalProperties"], false, "{object:#}");
    assert_eq!(inner["required"], json!(["tag"]));

    let format = sidecar.shown("/text/format", with_schema(short)).await;
    assert_eq!(format["schema"]["properties"]["summary"]["type"], "string", "{format:#}");
    assert_eq!(format["schema"]["required"], json!(["summary"]));
    assert_eq!(format["schema"]["additionalProperties"], false);

    assert_eq!(sidecar.shown("/text/format", prompt("a", "")).await, Value::Null);

    let mut answer = with_schema(schema);
    answer.inputs = vec![text(r#"[[json {"name": "x", "tags": []}]]"#)];
    let told = sidecar.run(answer).await;
    let response: Value = serde_json::from_str(told.final_response()).unwrap();
    assert_eq!(response, json!({"name": "x", "tags": []}));
    sidecar.stop().await;
}

/// A PNG of one pixel.
const DOT: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x06, 0x00, 0x00, 0x00, 0x1f, 0x15, 0xc4,
    0x89, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0x60, 0x60, 0x60, 0xf8,
    0x0f, 0x00, 0x01, 0x04, 0x01, 0x00, 0x5f, 0xe5, 0xc3, 0x4b, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45,
    0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];
const DOT_BASE64: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg==";
