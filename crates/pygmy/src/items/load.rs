//! Loading a checked file: staged part by part, published in the end.
//!
//! An import is named after the hash of its file. So the same command, given again after it broke
//! off, finds what it has staged and goes on with it: the parts, cut the same way, have the same
//! keys and count once. The name ends in random digits, because one that was discarded is used up.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use pygmy_client::{operator::Operator, store::StoreError};
use pygmy_protocol::{
    Code, Env,
    import::{ImportId, ItemsBody, MAX_ITEMS, item_that_exists},
    item::Item,
};

use super::{Checked, count, file::ItemsFile};
use crate::print::Style;

/// Titles and topics of one part, in bytes: six times as much, were every character escaped, fits
/// into a body.
const MAX_PART_TEXT_BYTES: usize = 512 * 1024;
/// Parts under way at a time: the next ones are ready when one is staged, and buys still find a
/// short queue.
const PARTS_UNDER_WAY: usize = 4;
/// Random digits at the end of an import's name.
const RANDOM_BYTES: usize = 4;

/// What was loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loaded {
    pub(crate) items: u64,
    pub(crate) topics: usize,
    /// Since the first part was sent.
    pub(crate) took: Duration,
}

/// A part of a file.
struct Part {
    number: u64,
    body: ItemsBody,
    /// On which line each item begins.
    lines: Vec<u64>,
}

/// Loads `file`, in which [`super::check()`] has found `checked`. Until this returns, nobody sees
/// any of it. If `interrupted` completes first, everything is taken back.
///
/// # Errors
/// One of its items exists, the store cannot be reached, it was interrupted.
pub(crate) async fn load(
    env: &Env,
    operator: &Operator,
    file: &mut ItemsFile,
    checked: Checked,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<Loaded> {
    let begun = env.now();
    let import = name(env, operator, checked).await?;
    let bar = progress(checked.items);
    let staging = async {
        stage(operator, &import, file, &bar).await?;
        operator.publish(&import, checked.items).await.map_err(anyhow::Error::new)
    };
    let ended = tokio::select! {
        ended = staging => ended,
        () = interrupted => Err(anyhow!("it was interrupted")),
    };
    bar.finish_and_clear();
    match ended {
        Ok(_) => {
            let took = env.now().saturating_since(begun);
            Ok(Loaded { items: checked.items, topics: checked.topics, took })
        }
        Err(error) if is_retryable(&error) => Err(error.context(format!(
            "the import broke off, and nothing of it is on sale; the same command goes on with \
             it, and `pygmy admin import --discard {import}` drops it"
        ))),
        Err(error) => {
            eprintln!("taking back what was staged");
            discard(operator, &import).await.with_context(|| {
                format!("{error:#}; `pygmy admin import --discard {import}` drops what was staged")
            })?;
            Err(error.context(format!("{} was not loaded", file.path().display())))
        }
    }
}

/// Drops all that `import` has staged.
///
/// # Errors
/// As the store says.
pub(crate) async fn discard(operator: &Operator, import: &ImportId) -> Result<(), StoreError> {
    while operator.discard(import).await?.items > 0 {}
    Ok(())
}

/// The name of the import: that of an earlier one of the same file, if it is not finished.
async fn name(env: &Env, operator: &Operator, checked: Checked) -> anyhow::Result<ImportId> {
    let file = format!("{:032x}", checked.hash);
    for import in operator.unfinished_imports().await? {
        if !import.id.as_str().starts_with(&file) {
            continue;
        }
        if !import.discarding {
            eprintln!(
                "going on with an import of this file, of which {} staged",
                are(import.items)
            );
            return Ok(import.id);
        }
        eprintln!("taking back what is left of an import of this file");
        discard(operator, &import.id).await?;
    }
    Ok(format!("{file}-{}", env.random.hex(RANDOM_BYTES)).parse()?)
}

fn are(items: u64) -> String {
    format!("{} {}", count(items, "item"), if items == 1 { "is" } else { "are" })
}

fn is_retryable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_retryable)
}

async fn stage(
    operator: &Operator,
    import: &ImportId,
    file: &mut ItemsFile,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    file.rewind()?;
    let mut parts = Parts { file, next: 1, held: None };
    stream::iter(std::iter::from_fn(|| parts.next().transpose()))
        .map(|part| async move {
            let part = part?;
            let staged = operator.stage(import, part.number, &part.body).await;
            staged.map_err(|error| part.explain(error))?;
            bar.inc(part.lines.len() as u64);
            anyhow::Ok(())
        })
        .buffered(PARTS_UNDER_WAY)
        .try_collect()
        .await
}

impl Part {
    fn explain(&self, error: StoreError) -> anyhow::Error {
        let StoreError::Problem(problem) = &error else { return error.into() };
        let item = item_that_exists(problem);
        let place = self.body.items.iter().position(|i| Some(i.item_number) == item);
        match place {
            Some(place) if problem.code == Code::ItemExists => {
                anyhow::Error::new(error).context(format!("line {}", self.lines[place]))
            }
            _ => error.into(),
        }
    }
}

/// Cuts a file into parts, every time the same.
struct Parts<'a> {
    file: &'a mut ItemsFile,
    next: u64,
    /// What did not fit the part before.
    held: Option<(u64, Item)>,
}

impl Parts<'_> {
    fn next(&mut self) -> anyhow::Result<Option<Part>> {
        let mut part =
            Part { number: self.next, body: ItemsBody { items: Vec::new() }, lines: Vec::new() };
        let mut bytes = 0;
        while part.lines.len() < MAX_ITEMS
            && let Some((line, item)) = self.item()?
        {
            bytes += item.title.len() + item.topic.len();
            if bytes > MAX_PART_TEXT_BYTES {
                self.held = Some((line, item));
                break;
            }
            part.body.items.push(item);
            part.lines.push(line);
        }
        self.next += 1;
        Ok((!part.lines.is_empty()).then_some(part))
    }

    fn item(&mut self) -> anyhow::Result<Option<(u64, Item)>> {
        if self.held.is_some() {
            return Ok(self.held.take());
        }
        match self.file.next()? {
            None => Ok(None),
            Some(Ok(item)) => Ok(Some(item)),
            Some(Err(bad)) => bail!("the file was changed meanwhile: {bad}"),
        }
    }
}

/// A bar of items. On no terminal there is none.
fn progress(items: u64) -> ProgressBar {
    let bar = ProgressBar::new(items);
    let colour = if Style::of_stderr().colours { ".cyan" } else { "" };
    let template =
        format!("{{bar:32{colour}}} {{human_pos}}/{{human_len}} items, {{per_sec}}, {{eta}} left");
    // The template is ours and valid; if it were not, the default does.
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

impl std::fmt::Display for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (items, topics) = (are(self.items), count(self.topics as u64, "topic"));
        let (items, verb) = items.rsplit_once(' ').unwrap_or((&items, ""));
        write!(f, "{items} in {topics} {verb} on sale after {:.1} s", self.took.as_secs_f64())
    }
}
