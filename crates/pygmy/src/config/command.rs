//! `pygmy config check` and `pygmy config show`.

use super::{Config, Settings};
use crate::{
    cli::ConfigFileArgs,
    print::{self, Column},
};

fn load(args: &ConfigFileArgs) -> anyhow::Result<Config> {
    Ok(Config::load(&args.file, &Settings::of_process(&args.set))?)
}

/// Says that the file is valid, or fails with what is wrong.
pub(crate) fn check(args: &ConfigFileArgs) -> anyhow::Result<()> {
    let config = load(args)?;
    let count = config.servers().len();
    let file = args.file.display();
    if args.json {
        let said = serde_json::json!({ "file": args.file, "valid": true, "servers": count });
        return Ok(print::json(&said)?);
    }
    let servers = if count == 1 { "server" } else { "servers" };
    Ok(print::line(format_args!("{file} is valid: {count} {servers}"))?)
}

/// Prints every value and where it comes from.
pub(crate) fn show(args: &ConfigFileArgs) -> anyhow::Result<()> {
    let settings = load(args)?.settings();
    if args.json {
        return Ok(print::json(&settings)?);
    }
    let columns = [Column::Text("KEY"), Column::Text("VALUE"), Column::Text("FROM")];
    let rows = settings.into_iter().map(|s| vec![s.key, s.value.to_string(), s.origin]);
    Ok(print::table(&columns, rows)?)
}
