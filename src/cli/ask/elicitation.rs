//! What an MCP server wants of the user: a form to be filled in, or an address to be visited.

use std::io;

use serde_json::Value;

use super::{Choice, Person, choose, form, pretty, quoted};
use crate::cli::words::plain;
use crate::pb;
use crate::pb::ElicitationAction as Action;
use crate::pb::answer_request_request::Answer;

pub(super) async fn ask(
    asked: &pb::Elicitation,
    person: &impl Person,
) -> io::Result<Option<Answer>> {
    let server = plain(&asked.server_name);
    person.show(&format!("The MCP server {server} asks:\n{}", quoted(&asked.message, "  ")))?;
    let form = form::of(&asked.requested_schema_json);
    let yes = match (asked.mode.as_str(), &form) {
        ("form", Ok(fields)) if fields.is_empty() => "yes",
        ("form", Ok(_)) => "fill it in",
        ("url", _) => {
            let text = format!(
                "Visit this address, and do there what it says:\n    {}\n",
                plain(&asked.url)
            );
            person.show(&text)?;
            "done"
        }
        // It can be declined all the same.
        _ => {
            person.show("This client does not know how to answer it:\n")?;
            person.show(&quoted(&pretty(&asked.params_json), "    "))?;
            ""
        }
    };
    let mut choices = Vec::new();
    if !yes.is_empty() {
        choices.push(Choice::new('y', yes, (Action::Accept, "")));
    }
    for persist in &asked.persist {
        let (key, meaning) = match persist.as_str() {
            "session" => ('a', "always: this tool, for as long as the thread is loaded"),
            "always" => ('k', "keep: always this tool; Codex writes it into its configuration"),
            // One that only a newer CLI has has no key here.
            _ => continue,
        };
        choices.push(Choice::new(key, meaning, (Action::Accept, persist)));
    }
    choices.push(Choice::new('n', "no", (Action::Decline, "")));
    choices.push(Choice::new('c', "leave without saying", (Action::Cancel, "")));
    let Some((action, persist)) = choose(&choices, person).await? else { return Ok(None) };
    let content_json = match (action, form) {
        (Action::Accept, Ok(fields)) if asked.mode == "form" => {
            match form::fill_in(&fields, person).await? {
                Some(content) => Value::from(content).to_string(),
                None => return Ok(None),
            }
        }
        _ => String::new(),
    };
    Ok(Some(Answer::Elicitation(pb::ElicitationAnswer {
        action: action.into(),
        content_json,
        persist: persist.to_owned(),
    })))
}
