//! Answers to what Codex asks, on their way in: what can be told without the question.

use super::{Faults, image_url, show};
use crate::model::question::{Answer, ToolCallAnswer};
use crate::model::refusal::Refusal;
use crate::pb::ToolContent;
use crate::pb::tool_content::Content;
use crate::turn::pixels::ImageSum;

/// Validates the fields `request_id` and `answer`. Whether the answer is of the kind that was asked for
/// only the turn knows.
pub(crate) fn answer(
    request_id: String,
    answer: Option<Answer>,
) -> Result<(String, Answer), Refusal> {
    let mut faults = Faults::default();
    if request_id.is_empty() {
        faults.add("request_id", "is empty; request_raised names it");
    }
    let mut images = ImageSum::default();
    if let Some(Answer::ToolCall(ToolCallAnswer { content, success: _ })) = &answer {
        for (index, ToolContent { content }) in content.iter().enumerate() {
            let field = format!("tool_call.content[{index}]");
            match content {
                Some(Content::ImageUrl(url)) => {
                    let fault = image_url::fault(url).or_else(|| {
                        images.add_address(url).err().map(|fault| format!("the image {fault}"))
                    });
                    if let Some(fault) = fault {
                        faults.add(format!("{field}.image_url"), fault);
                    }
                }
                Some(Content::AudioUrl(url)) if !is_inline(url) => {
                    let fault = format!("{} is not inline; give data:audio/…;base64,…", show(url));
                    faults.add(format!("{field}.audio_url"), fault);
                }
                Some(Content::Text(_) | Content::AudioUrl(_)) => {}
                None => faults.add(field, "is empty; give a text, an image_url or an audio_url"),
            }
        }
    }
    let Some(answer) = answer else {
        faults.add("answer", "is not set; give the one that the kind of the request names");
        return Err(Refusal::InvalidInput(faults.0));
    };
    faults.or_refuse((request_id, answer))
}

fn is_inline(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}
