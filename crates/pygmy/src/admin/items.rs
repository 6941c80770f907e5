//! `pygmy admin import` and `pygmy admin export`.

use std::path::Path;

use anyhow::{Context, bail};
use pygmy_client::operator::Operator;
use pygmy_protocol::{Env, import::ImportId, time::rfc3339};
use serde_json::json;

use super::Cluster;
use crate::{
    cli::{ExportArgs, ImportArgs, OperatorArgs},
    items::{self, Format, ItemsFile, check, count},
    print::{self, Column},
    runtime::{Signals, block_on},
};

pub(super) fn import(
    env: &Env,
    operator: &OperatorArgs,
    args: &ImportArgs,
    json: bool,
) -> anyhow::Result<()> {
    let cluster = || Cluster::find(operator)?.operator(env);
    match &args.what.file {
        Some(file) if args.dry_run => dry_run(file, args.format, json),
        Some(file) => {
            // Before the file, which may take a while.
            let operator = cluster()?;
            load(env, &operator, file, args.format, json)
        }
        None => match &args.what.discard {
            Some(import) => block_on(env, discard(&cluster()?, import))?,
            None => unfinished(env, &cluster()?, json),
        },
    }
}

fn dry_run(path: &Path, format: Option<Format>, json: bool) -> anyhow::Result<()> {
    let checked = check(&mut ItemsFile::open(path, format)?)?;
    if json {
        return Ok(print::json(&json!({ "items": checked.items, "topics": checked.topics }))?);
    }
    let (items, topics) = (count(checked.items, "item"), count(checked.topics as u64, "topic"));
    Ok(print::line(format_args!("the file is good: {items} in {topics}; nothing was loaded"))?)
}

fn load(
    env: &Env,
    operator: &Operator,
    path: &Path,
    format: Option<Format>,
    json: bool,
) -> anyhow::Result<()> {
    let mut file = ItemsFile::open(path, format)?;
    let checked = check(&mut file)?;
    let loading = async {
        let mut signals = Signals::catch().context("cannot catch signals")?;
        let interrupted = async {
            signals.next().await;
        };
        items::load(env, operator, &mut file, checked, interrupted).await
    };
    let loaded = block_on(env, loading)??;
    if json {
        let (items, topics) = (loaded.items, loaded.topics);
        let seconds = loaded.took.as_secs_f64();
        return Ok(print::json(&json!({
            "items": items, "topics": topics, "already": loaded.already, "seconds": seconds,
        }))?);
    }
    Ok(print::line(loaded)?)
}

fn unfinished(env: &Env, operator: &Operator, json: bool) -> anyhow::Result<()> {
    let imports = block_on(env, operator.unfinished_imports())??;
    if json {
        return Ok(print::json(&imports)?);
    }
    if imports.is_empty() {
        return Ok(print::line("all imports are finished")?);
    }
    let columns =
        [Column::Text("IMPORT"), Column::Number("ITEMS"), Column::Text("BEGUN"), Column::Text("")];
    let rows = imports.into_iter().map(|import| {
        let note = if import.discarding { "being discarded" } else { "" };
        let begun = rfc3339(import.begun_ms);
        vec![import.id.to_string(), items::grouped(import.items), begun, note.to_owned()]
    });
    Ok(print::table(&columns, rows)?)
}

async fn discard(operator: &Operator, import: &ImportId) -> anyhow::Result<()> {
    let unfinished = operator.unfinished_imports().await?;
    let Some(found) = unfinished.iter().find(|unfinished| unfinished.id == *import) else {
        bail!(
            "there is no unfinished import {import}; `pygmy admin import --unfinished` lists them"
        );
    };
    items::discard(operator, import).await?;
    Ok(print::line(format_args!("dropped {}", count(found.items, "item")))?)
}

pub(super) fn export(
    env: &Env,
    cluster: &Cluster,
    args: &ExportArgs,
    json: bool,
) -> anyhow::Result<()> {
    let operator = cluster.operator(env)?;
    let path = args.file.as_deref();
    let items = block_on(env, items::export(&operator, path, args.format))??;
    let Some(path) = path else { return Ok(()) };
    if json {
        return Ok(print::json(&json!({ "items": items, "file": path }))?);
    }
    Ok(print::line(format_args!("wrote {} to {}", count(items, "item"), path.display()))?)
}
