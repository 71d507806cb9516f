//! Which turn or which binding a command line means.

use super::failure::Failure;
use super::{REFUSED, refusal};
use crate::grpc::caller::Caller;
use crate::pb;
use crate::pb::attach_turn_request::Target;

/// Which thread of a context is meant.
#[derive(Debug, clap::Args)]
pub(super) struct ContextThread {
    /// The tool whose thread is meant
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        requires = "context"
    )]
    pub(super) tool: String,
    /// The thread key itself, in place of the tool's
    #[arg(
        long,
        value_name = "KEY",
        default_value = "",
        hide_default_value = true,
        requires = "context"
    )]
    pub(super) thread_key: String,
}

impl ContextThread {
    /// The binding of this context.
    pub(super) fn of(&self, context_id: String) -> pb::ContextRef {
        let ContextThread { tool, thread_key } = self;
        let (tool_name, thread_id_key) = (tool.clone(), thread_key.clone());
        pb::ContextRef { context_id, tool_name, thread_id_key }
    }
}

/// A turn: by its id, or the one of a context.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("turn-choice").required(true).args(["turn", "context"])))]
pub(super) struct TurnTarget {
    /// The turn, by the id that `run` and `turns` show
    #[arg(value_name = "TURN")]
    pub(super) turn: Option<String>,
    /// In place of its id: the context whose turn is meant
    #[arg(long, value_name = "ID")]
    pub(super) context: Option<String>,
    #[command(flatten)]
    pub(super) thread: ContextThread,
}

impl TurnTarget {
    /// For those who join it: of a context the running turn, or its latest.
    pub(super) fn to_attach(&self) -> Target {
        match &self.turn {
            Some(turn_id) => Target::TurnId(turn_id.clone()),
            None => {
                let context_id = self.context.clone().unwrap_or_default();
                Target::Context(self.thread.of(context_id))
            }
        }
    }

    /// The id of the turn; of a context, of the one that runs.
    pub(super) async fn running(&self, caller: &Caller) -> Result<String, Failure> {
        if let Some(turn_id) = &self.turn {
            return Ok(turn_id.clone());
        }
        let context_id = self.context.clone().unwrap_or_default();
        let request = pb::GetContextRequest {
            context_id: context_id.clone(),
            tool_name: self.thread.tool.clone(),
            thread_id_key: self.thread.thread_key.clone(),
        };
        let response = caller.get_context(request).await.map_err(refusal::failure)?;
        let turn_id = response.context.unwrap_or_default().running_turn_id;
        if turn_id.is_empty() {
            let message = format!("no turn of the context {context_id} runs");
            return Err(Failure::Told { message, code: REFUSED });
        }
        Ok(turn_id)
    }
}
