//! `models`: what Codex offers.

use std::io::{self, Write as _};

use super::client::{self, AddrArgs};
use super::failure::CommandResult;
use super::{json, refusal, table, words};
use crate::pb;

#[derive(Debug, clap::Args)]
pub(super) struct ModelsArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// Those, too, that Codex does not show to people
    #[arg(long)]
    all: bool,
    /// Print JSON, one model a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn models(args: ModelsArgs) -> CommandResult {
    let ModelsArgs { addr, all, json } = args;
    let caller = client::connect(&addr).await?;
    let request = pb::ListModelsRequest { include_hidden: all };
    let models = caller.list_models(request).await.map_err(refusal::failure)?.models;
    let mut out = io::stdout();
    if json {
        for model in &models {
            writeln!(out, "{}", json::line(model)?)?;
        }
        return Ok(0);
    }
    let rows: Vec<[String; 5]> = models
        .iter()
        .map(|model| {
            let mark = if model.is_default { " (default)" } else { "" };
            let efforts = model.reasoning_efforts.iter().map(|effort| {
                let mark = if *effort == model.default_reasoning_effort { "*" } else { "" };
                format!("{}{mark}", words::plain(effort))
            });
            [
                format!("{}{mark}", words::plain(&model.model)),
                words::or_dash(&model.display_name),
                words::or_dash(&efforts.collect::<Vec<_>>().join(" ")),
                words::or_dash(&model.service_tiers.join(" ")),
                words::or_dash(&model.description),
            ]
        })
        .collect();
    table::write(&mut out, ["MODEL", "NAME", "EFFORTS", "TIERS", "DESCRIPTION"], &rows)?;
    Ok(0)
}
