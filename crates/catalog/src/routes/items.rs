//! Many items at once: adding, importing, reading all of them.

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::Response,
    routing::{get, post},
};
use http::{HeaderMap, StatusCode};
use pygmy_protocol::{
    Problem, RequestContext,
    command::Command,
    http::{Answer, Json, empty_body, read_body, read_body_up_to},
    import::{ImportId, ItemsBody, MAX_ITEMS_BODY_BYTES, PublishBody},
    item::PageRequest,
};

use super::{PageParams, Replica, change, page_query, parse_json, read_json, split, with_index};
use crate::{read::read, replica::Shared, state::Read};

/// The routes, without the secret.
pub(super) fn routes() -> Router<std::sync::Arc<Shared>> {
    Router::new()
        .route("/items", get(all_items).post(add_items))
        .route("/imports", get(unfinished_imports))
        .route("/imports/{import}/items", post(stage_items))
        .route("/imports/{import}/publish", post(publish))
        .route("/imports/{import}/discard", post(discard))
}

async fn all_items(
    State(shared): Replica,
    context: RequestContext,
    params: PageParams,
) -> Result<Response, Problem> {
    let query = page_query(params)?;
    let page = PageRequest::parse(query.limit.as_deref(), query.cursor.as_deref())?;
    let Read { value, index } =
        read(&shared, context.deadline, |reader| reader.all_items(page)).await?;
    Ok(with_index(index, Json(StatusCode::OK, value)))
}

async fn add_items(
    State(shared): Replica,
    context: RequestContext,
    request: Request,
) -> Result<Answer, Problem> {
    let (headers, body) = split(request);
    let ItemsBody { items } = read_items(&shared, &context, &headers, body).await?;
    change(&shared, &context, &headers, Command::AddItems { items }).await
}

async fn unfinished_imports(
    State(shared): Replica,
    context: RequestContext,
) -> Result<Response, Problem> {
    let Read { value, index } = read(&shared, context.deadline, |reader| reader.imports()).await?;
    Ok(with_index(index, Json(StatusCode::OK, value)))
}

async fn stage_items(
    State(shared): Replica,
    context: RequestContext,
    Path(import): Path<String>,
    request: Request,
) -> Result<Answer, Problem> {
    let import: ImportId = import.parse()?;
    let (headers, body) = split(request);
    let ItemsBody { items } = read_items(&shared, &context, &headers, body).await?;
    change(&shared, &context, &headers, Command::StageItems { import, items }).await
}

async fn publish(
    State(shared): Replica,
    context: RequestContext,
    Path(import): Path<String>,
    request: Request,
) -> Result<Answer, Problem> {
    let import: ImportId = import.parse()?;
    let (headers, body) = split(request);
    let PublishBody { items } = read_json(&shared, &context, &headers, body).await?;
    change(&shared, &context, &headers, Command::PublishImport { import, items }).await
}

async fn discard(
    State(shared): Replica,
    context: RequestContext,
    Path(import): Path<String>,
    request: Request,
) -> Result<Answer, Problem> {
    let import: ImportId = import.parse()?;
    let (headers, body) = split(request);
    empty_body(&read_body(&shared.env, &context, &shared.server.limits, body).await?)?;
    change(&shared, &context, &headers, Command::DiscardImport { import }).await
}

async fn read_items(
    shared: &Shared,
    context: &RequestContext,
    headers: &HeaderMap,
    body: Body,
) -> Result<ItemsBody, Problem> {
    let bytes = read_body_up_to(&shared.env, context, MAX_ITEMS_BODY_BYTES, body).await?;
    let body: ItemsBody = parse_json(headers, &bytes)?;
    body.check()?;
    Ok(body)
}
