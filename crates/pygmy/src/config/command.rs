//! `pygmy config check` and `pygmy config show`.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{Config, Settings};
use crate::{
    cli::ConfigFileArgs,
    print::{self, Column},
    serve::read_secret,
};

fn load(args: &ConfigFileArgs) -> anyhow::Result<Config> {
    let settings = Settings::of_process(&args.set);
    settings.check_variables()?;
    Ok(Config::load(&args.file, &settings)?)
}

/// Says that the file is valid, or fails with what is wrong.
pub(crate) fn check(args: &ConfigFileArgs) -> anyhow::Result<()> {
    let config = load(args)?;
    let secret_file = config.secret_file();
    read_secret(&secret_file)?;
    let open = is_open_to_others(&secret_file)?;
    let count = config.servers().len();
    let file = args.file.display();
    if args.json {
        let said = serde_json::json!({
            "file": args.file, "valid": true, "servers": count, "secretOpenToOthers": open,
        });
        return Ok(print::json(&said)?);
    }
    if open {
        let secret_file = secret_file.display();
        eprintln!("warning: every user of this machine can read the secret; run:");
        eprintln!("  chmod o= {secret_file}");
    }
    let servers = if count == 1 { "server" } else { "servers" };
    Ok(print::line(format_args!("{file} is valid: {count} {servers}"))?)
}

/// Members of its group may be meant to read it; all others never are.
fn is_open_to_others(file: &Path) -> io::Result<bool> {
    Ok(fs::metadata(file)?.mode() & 0o004 != 0)
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
