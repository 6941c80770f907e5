//! What a browser shows at `/`.

use axum::response::Html;

const PAGE: &str = "\
<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Pygmy</title>
<h1>Pygmy</h1>
<p>This is the API of a store. It answers in JSON.
<ul>
<li><a href=\"/topics\">GET /topics</a>: what there is
<li>GET /search/{topic}: the items of a topic
<li>GET /lookup/{itemNumber}: an item, as <a href=\"/lookup/1\">/lookup/1</a>
<li>POST /buy/{itemNumber}: buys a copy
<li>GET /orders/{orderNumber}: an order
</ul>
";

pub(crate) async fn home() -> Html<&'static str> {
    Html(PAGE)
}
