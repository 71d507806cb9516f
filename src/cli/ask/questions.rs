//! Questions of the model to the user.

use std::io;

use super::{Person, quoted};
use crate::cli::words::plain;
use crate::pb;
use crate::pb::answer_request_request::Answer;

pub(super) async fn ask(
    asked: &pb::UserQuestions,
    person: &impl Person,
) -> io::Result<Option<Answer>> {
    let mut answers = Vec::new();
    let count = asked.questions.len();
    for (at, question) in asked.questions.iter().enumerate() {
        let number = if count > 1 { format!(" ({} of {count})", at + 1) } else { String::new() };
        let header = match question.header.as_str() {
            "" => String::new(),
            header => format!(" {}", plain(header)),
        };
        let mut text = format!("Codex asks{number}:{header}\n{}", quoted(&question.text, "  "));
        for (at, option) in question.options.iter().enumerate() {
            let means = match option.description.as_str() {
                "" => String::new(),
                description => format!(": {}", plain(description)),
            };
            text.push_str(&format!("  {}  {}{means}\n", at + 1, plain(&option.label)));
        }
        text.push_str(how_to(question));
        person.show(&text)?;
        match one(question, person).await? {
            Some(chosen) if chosen.is_empty() => {}
            Some(answers_of_it) => answers.push(pb::UserQuestionAnswer {
                question_id: question.question_id.clone(),
                answers: answers_of_it,
            }),
            None => return Ok(None),
        }
    }
    Ok(Some(Answer::UserQuestions(pb::UserQuestionsAnswer { answers })))
}

fn takes_words(question: &pb::UserQuestion) -> bool {
    question.other_allowed || question.options.is_empty()
}

fn how_to(question: &pb::UserQuestion) -> &'static str {
    match (question.options.is_empty(), takes_words(question)) {
        (true, _) => "Type an answer; an empty line leaves it unanswered.\n",
        (false, true) => {
            "Type a number, or an answer of your own; an empty line leaves it unanswered.\n"
        }
        (false, false) => "Type a number; an empty line leaves it unanswered.\n",
    }
}

/// What is answered to one question; nothing where it is left unanswered.
async fn one(question: &pb::UserQuestion, person: &impl Person) -> io::Result<Option<Vec<String>>> {
    loop {
        let Some(line) = person.line("> ", question.secret).await? else { return Ok(None) };
        // Blanks may belong to a secret.
        let typed = if question.secret { line.as_str() } else { line.trim() };
        if typed.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if let Some(labels) = chosen(question, typed) {
            return Ok(Some(labels));
        }
        if takes_words(question) {
            return Ok(Some(vec![typed.to_owned()]));
        }
        let most = question.options.len();
        person.show(&format!("Type a number from 1 to {most}, or one of the words.\n"))?;
    }
}

/// The labels of the options that were typed: a number, several with commas between, or a label.
fn chosen(question: &pb::UserQuestion, typed: &str) -> Option<Vec<String>> {
    let options = &question.options;
    let named = options.iter().find(|option| option.label.eq_ignore_ascii_case(typed));
    if let Some(option) = named {
        return Some(vec![option.label.clone()]);
    }
    let number = |text: &str| {
        let at = text.trim().parse::<usize>().ok()?.checked_sub(1)?;
        options.get(at).map(|option| option.label.clone())
    };
    typed.split(',').map(number).collect()
}
