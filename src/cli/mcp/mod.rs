//! `mcp`: an MCP server on standard input and output, with the tools that `codex mcp-server` had.
//!
//! A call is one turn on the sidecar's pool. What the turn does is told as it happens (`codex/event`,
//! and progress where the client asks for that), what it asks becomes an elicitation where the client
//! takes those, and is declined where it does not. A cancelled call interrupts its turn, and so does a
//! client that goes away.

pub(crate) mod arguments;
mod asking;
mod call;
pub(crate) mod envelope;
mod events;
mod sessions;
mod tools;
mod transport;

use std::borrow::Cow;
use std::path::PathBuf;

use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ErrorData, Implementation, ListToolsResult,
    PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{QuitReason, RequestContext, RoleServer, ServerInitializeError, serve_server};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use self::call::{Client, Ending};
use self::sessions::Sessions;
use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};
use crate::grpc::caller::Caller;

/// Serve the tools `codex` and `codex-reply` to an MCP client on stdin and stdout
#[derive(Debug, clap::Args)]
pub(super) struct McpArgs {
    #[command(flatten)]
    addr: AddrArgs,
}

/// Serves until the client goes away.
pub(super) async fn mcp(args: McpArgs) -> CommandResult {
    let directory = std::env::current_dir()
        .map_err(|error| Failure::told(format!("can't tell the working directory: {error}")))?;
    let is_gone = CancellationToken::new();
    let server = Server {
        addr: args.addr,
        caller: OnceCell::new(),
        directory,
        sessions: Sessions::default(),
        is_gone: is_gone.clone(),
    };
    let service = match serve_server(server, transport::stdio(is_gone)).await {
        Ok(service) => service,
        // It came and went.
        Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(0),
        Err(error) => return Err(Failure::told(format!("no MCP client on stdin: {error}"))),
    };
    match service.waiting().await {
        Ok(QuitReason::Closed | QuitReason::Cancelled) => Ok(0),
        Ok(reason) => Err(Failure::told(format!("the MCP connection ended: {reason:?}"))),
        Err(error) => Err(Failure::told(format!("the MCP server ended: {error}"))),
    }
}

/// What serves the tools.
#[derive(Debug)]
struct Server {
    addr: AddrArgs,
    // Once a call needed it: a client may start this before the sidecar.
    caller: OnceCell<Caller>,
    /// Where turns work unless they say otherwise, and where relative paths start at.
    directory: PathBuf,
    sessions: Sessions,
    /// Cancelled when the client has closed its side: nothing can be told or asked any more.
    is_gone: CancellationToken,
}

impl Server {
    async fn call(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Ending {
        let arguments = request.arguments.unwrap_or_default();
        let asked = match request.name.as_ref() {
            tools::CODEX => arguments::codex(arguments, &self.directory),
            tools::CODEX_REPLY => {
                arguments::codex_reply(arguments, &self.sessions, &self.directory)
            }
            name => Err(Ending::failed("", format!("Unknown tool '{name}'"))),
        };
        let asked = match asked {
            Ok(asked) => asked,
            Err(ending) => return ending,
        };
        let client = Client { context, is_gone: &self.is_gone };
        let connecting = self.caller.get_or_try_init(|| client::connect(&self.addr));
        let connected = tokio::select! {
            connected = connecting => connected,
            () = client.gave_up() => return Ending::failed(&asked.thread_id, "cancelled"),
        };
        match connected {
            Ok(caller) => call::run(caller, asked, client, &self.sessions).await,
            Err(failure) => Ending::failed(&asked.thread_id, failure.into_message()),
        }
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        let own = Implementation::new("codex-sidecar", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(own.with_title("Codex"))
    }

    /// Those in which a server can ask its client something while a call runs. In later ones a call would
    /// have to end to ask.
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(ProtocolVersion::known_up_to(&ProtocolVersion::LATEST_WITH_INITIALIZE))
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::all().into_iter().find(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        Ok(self.call(request, &context).await.into_result().into())
    }
}
