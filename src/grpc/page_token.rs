//! Where a page ended: the last key, and the filter that it was made with.

use crate::model::id::ContextKey;
use crate::model::refusal::Refusal;

type Token = (String, String, Option<String>);

pub(super) fn write(key: &ContextKey, filter: Option<&str>) -> String {
    let token: Token = (key.context_id.clone(), key.thread_key.clone(), filter.map(str::to_owned));
    let json = serde_json::to_vec(&token).unwrap_or_default();
    json.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn read(token: &str, filter: Option<&str>) -> Result<Option<(String, String)>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let refused =
        || Refusal::field("page_token", "is not the next_page_token of a page of this listing");
    let bytes = (0..token.len())
        .step_by(2)
        .map(|start| {
            let pair = token.get(start..start + 2)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(refused)?;
    let (context_id, thread_key, made_with): Token =
        serde_json::from_slice(&bytes).map_err(|_| refused())?;
    if made_with.as_deref() != filter {
        return Err(refused());
    }
    Ok(Some((context_id, thread_key)))
}
