//! `contexts`: which thread a context continues.

use std::io::{self, Write as _};

use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};
use super::refusal::Words;
use super::{history, json, table, words};
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::read_thread_request::Target;

#[derive(Debug, clap::Args)]
pub(super) struct ContextsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List bindings
    List {
        /// Only those of this context
        #[arg(long, value_name = "ID")]
        context: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Show one binding
    Get {
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        output: Output,
    },
    /// Bind a context to a thread
    Bind {
        #[command(flatten)]
        key: Key,
        /// The thread, a UUID
        #[arg(value_name = "THREAD")]
        thread_id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Copy a context's thread, and bind the copy to another context
    Fork {
        /// The context whose thread is copied
        #[arg(value_name = "CONTEXT")]
        source: String,
        /// The context that is bound to the copy; it must not be bound yet
        #[arg(value_name = "TARGET")]
        target: String,
        /// The tool whose thread is meant
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        tool: String,
        /// The thread key itself, in place of the tool's
        #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
        thread_key: String,
        /// The last turn to copy, by Codex's id as `history` shows it [default: all]
        #[arg(long, value_name = "TURN", default_value = "", hide_default_value = true)]
        up_to: String,
        #[command(flatten)]
        output: Output,
    },
    /// Take a context's thread back to before a turn; files stay as they are
    Revert {
        #[command(flatten)]
        key: Key,
        /// The first turn to take back, by Codex's id as `history` shows it
        #[arg(long, value_name = "TURN")]
        before: String,
        #[command(flatten)]
        output: Output,
    },
    /// Show what happened on a context's thread, the oldest turn first
    #[command(group(clap::ArgGroup::new("whose").required(true).args(["context_id", "thread"])))]
    History {
        /// The context
        #[arg(value_name = "CONTEXT")]
        context_id: Option<String>,
        /// The tool whose thread is meant
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        tool: String,
        /// The thread key itself, in place of the tool's
        #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
        thread_key: String,
        /// In place of a context: the thread, a UUID
        #[arg(long, value_name = "ID")]
        thread: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Remove a binding; the thread stays in Codex, unless --thread is given
    Delete {
        #[command(flatten)]
        key: Key,
        /// Delete the thread, too, and what the sidecar retains of its turns; there is no way back
        #[arg(long)]
        thread: bool,
        #[command(flatten)]
        addr: AddrArgs,
    },
}

/// Which binding.
#[derive(Debug, clap::Args)]
struct Key {
    /// The context
    #[arg(value_name = "CONTEXT")]
    context_id: String,
    /// The tool whose thread is meant
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    tool: String,
    /// The thread key itself, in place of the tool's
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    thread_key: String,
}

#[derive(Debug, clap::Args)]
struct Output {
    #[command(flatten)]
    addr: AddrArgs,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn contexts(ContextsArgs { action }: ContextsArgs) -> CommandResult {
    match action {
        Action::List { context, output } => list(context.unwrap_or_default(), &output).await?,
        Action::Get { key, output } => {
            let Key { context_id, tool, thread_key } = key;
            let request =
                pb::GetContextRequest { context_id, tool_name: tool, thread_id_key: thread_key };
            let response =
                client::connect(&output.addr).await?.get_context(request).await.map_err(refused)?;
            print(&output, response.context.as_slice())?;
        }
        Action::Bind { key, thread_id, output } => {
            let Key { context_id, tool, thread_key } = key;
            let request = pb::BindContextRequest {
                context_id,
                tool_name: tool,
                thread_id_key: thread_key,
                thread_id,
            };
            let response = client::connect(&output.addr)
                .await?
                .bind_context(request)
                .await
                .map_err(refused)?;
            if output.json {
                writeln!(io::stdout(), "{}", json::line(&response)?)?;
            } else {
                print(&output, response.context.as_slice())?;
                if !response.replaced_thread_id.is_empty() {
                    let replaced = words::plain(&response.replaced_thread_id);
                    writeln!(io::stdout(), "it was bound to {replaced} before")?;
                }
            }
        }
        Action::Fork { source, target, tool, thread_key, up_to, output } => {
            let context = |context_id| pb::ContextRef {
                context_id,
                tool_name: tool.clone(),
                thread_id_key: thread_key.clone(),
            };
            let request = pb::ForkContextRequest {
                source: Some(context(source)),
                target: Some(context(target)),
                last_codex_turn_id: up_to,
            };
            let caller = client::connect(&output.addr).await?;
            let response = caller.fork_context(request).await.map_err(refused)?;
            print(&output, response.context.as_slice())?;
        }
        Action::Revert { key, before, output } => {
            let Key { context_id, tool, thread_key } = key;
            let context = pb::ContextRef { context_id, tool_name: tool, thread_id_key: thread_key };
            let request =
                pb::RevertContextRequest { context: Some(context), before_codex_turn_id: before };
            let caller = client::connect(&output.addr).await?;
            let response = caller.revert_context(request).await.map_err(refused)?;
            print(&output, response.context.as_slice())?;
        }
        Action::History { context_id, tool, thread_key, thread, output } => {
            let target = match (thread, context_id) {
                (Some(thread_id), _) => Target::ThreadId(thread_id),
                (None, context_id) => Target::Context(pb::ContextRef {
                    context_id: context_id.unwrap_or_default(),
                    tool_name: tool,
                    thread_id_key: thread_key,
                }),
            };
            history::history(&output.addr, output.json, target).await?;
        }
        Action::Delete { key, thread, addr } => {
            let Key { context_id, tool, thread_key } = key;
            let request = pb::DeleteContextRequest {
                context_id,
                tool_name: tool,
                thread_id_key: thread_key,
                delete_thread: thread,
            };
            let caller = client::connect(&addr).await?;
            let response = caller.delete_context(request).await.map_err(refused)?;
            if thread {
                let thread_id = words::plain(&response.deleted_thread_id);
                writeln!(io::stdout(), "thread {thread_id} is deleted, and its context with it")?;
            }
        }
    }
    Ok(0)
}

fn refused(refused: Refused) -> Failure {
    Words::of_contexts().failure(refused)
}

async fn list(context_id: String, output: &Output) -> Result<(), Failure> {
    let caller = client::connect(&output.addr).await?;
    let mut contexts = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            pb::ListContextsRequest { page_size: 1000, page_token, context_id: context_id.clone() };
        let page = caller.list_contexts(request).await.map_err(refused)?;
        if output.json {
            // Page by page: a million bindings need not fit into memory first.
            print(output, &page.contexts)?;
        } else {
            contexts.extend(page.contexts);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output.json { Ok(()) } else { print(output, &contexts) }
}

fn print(output: &Output, contexts: &[pb::Context]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if output.json {
        for context in contexts {
            writeln!(out, "{}", json::line(context)?)?;
        }
        return Ok(());
    }
    let rows: Vec<[String; 7]> = contexts
        .iter()
        .map(|context| {
            let turns = match (context.running_turn_id.is_empty(), context.queued_turns) {
                (true, 0) => context.turn_count.to_string(),
                (true, queued) => format!("{}, {queued} waiting", context.turn_count),
                (false, 0) => format!("{}, running", context.turn_count),
                (false, queued) => format!("{}, running, {queued} waiting", context.turn_count),
            };
            [
                words::plain(&context.context_id),
                words::or_dash(&context.tool_name),
                words::or_dash(&context.thread_id_key),
                words::or_dash(&context.thread_id),
                turns,
                words::or_dash(&context.worker_id),
                words::ago(context.update_time.as_ref()),
            ]
        })
        .collect();
    let titles = ["CONTEXT", "TOOL", "THREAD KEY", "THREAD", "TURNS", "WORKER", "CHANGED AGO"];
    table::write(&mut out, titles, &rows)?;
    Ok(())
}
