//! Callers' answers to what Codex asks, as Codex wants them.

use serde::Serialize;
use serde_json::{Value, json};

use crate::app_server::message::Call;
use crate::app_server::peer::{Peer, RequestError};
use crate::pb::tool_content::Content;
use crate::pb::{ToolCallAnswer, ToolContent};

#[derive(Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
enum ContentItem<'a> {
    #[serde(rename = "inputText")]
    Text { text: &'a str },
    #[serde(rename = "inputImage")]
    Image { image_url: &'a str },
    #[serde(rename = "inputAudio")]
    Audio { audio_url: &'a str },
}

impl Peer {
    /// Answers the call of a lent function.
    ///
    /// # Errors
    /// [`RequestError::Transport`] when the peer is closed or its queue is full.
    pub fn answer(&self, call: &Call, answer: &ToolCallAnswer) -> Result<(), RequestError> {
        self.respond(call, Ok(tool_call(answer)))
    }
}

fn tool_call(ToolCallAnswer { content, success }: &ToolCallAnswer) -> Value {
    let items = content.iter().filter_map(|ToolContent { content }| match content.as_ref()? {
        Content::Text(text) => Some(ContentItem::Text { text }),
        Content::ImageUrl(image_url) => Some(ContentItem::Image { image_url }),
        Content::AudioUrl(audio_url) => Some(ContentItem::Audio { audio_url }),
    });
    json!({ "contentItems": items.collect::<Vec<_>>(), "success": success })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lent_function_gave_back_is_what_codex_reads() {
        let content = [
            Content::Text("t".to_owned()),
            Content::ImageUrl("data:i".to_owned()),
            Content::AudioUrl("data:a".to_owned()),
        ];
        let content = content.map(|content| ToolContent { content: Some(content) }).to_vec();
        assert_eq!(
            tool_call(&ToolCallAnswer { content, success: true }),
            json!({
                "contentItems": [
                    { "type": "inputText", "text": "t" },
                    { "type": "inputImage", "imageUrl": "data:i" },
                    { "type": "inputAudio", "audioUrl": "data:a" },
                ],
                "success": true,
            })
        );
        let nothing = json!({ "contentItems": [], "success": false });
        assert_eq!(tool_call(&ToolCallAnswer::default()), nothing);
    }
}
