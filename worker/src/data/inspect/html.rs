//! One page of HTML that needs nothing else: counts, lengths of captions, what is broken, and samples with their pictures.

use super::{
    spread::Spread,
    summary::{Example, Summary},
};
use std::fmt::Write as _;

/// Everything that the page looks like.
const STYLE: &str = "body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#222}\
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}\
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.bar{background:#4a78b5;height:.7rem;display:inline-block}\
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1rem}\
figure{margin:0;border:1px solid #ddd;padding:.6rem;overflow-wrap:anywhere}\
figure img{max-width:100%;display:block;margin-bottom:.4rem}figcaption p{margin:.3rem 0}\
.dim{color:#777;font-size:.85em}.bad{color:#a02020}pre{white-space:pre-wrap}";

/// The page. `pictures` has the `data:` URI of each example, or why it has none.
pub(super) fn page(title: &str, summary: &Summary, pictures: &[Result<String, String>]) -> String {
    let mut page = String::new();
    let title = escape(title);
    // The page may load and run nothing, whatever a caption says.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    page += &counts(summary);
    page += &captions(summary);
    if !summary.report.is_clean() {
        let _ = write!(page, "<h2>Broken or left out</h2>\n<pre>{}</pre>\n", escape(&summary.report.to_string()));
    }
    page += "<h2>Samples</h2>\n<div class=\"grid\">\n";
    for (example, picture) in summary.examples.iter().zip(pictures) {
        page += &figure(example, picture);
    }
    page += "</div>\n</body>\n</html>\n";
    page
}

fn counts(summary: &Summary) -> String {
    let mut table = String::from("<table>\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(table, "<tr><th>{name}</th><td>{value}</td></tr>");
    };
    line("samples", format!("{} in {} shards, {} usable", summary.samples, summary.shards, summary.usable));
    let kinds: Vec<String> = summary.images.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    line("images", kinds.join(", "));
    let words = |spread: &Option<Spread>, unit: &str| {
        let words = |s: &Spread| format!("{} to {} {unit}, median {}, 95 % up to {}", s.min, s.max, s.median, s.p95);
        spread.as_ref().map_or("none".to_owned(), words)
    };
    line("width", words(&summary.width_pixels, "pixels"));
    line("height", words(&summary.height_pixels, "pixels"));
    line("size", words(&summary.image_bytes, "bytes"));
    line("broken", summary.skipped_total.to_string());
    table + "</table>\n"
}

fn captions(summary: &Summary) -> String {
    let mut html = String::new();
    for column in &summary.captions {
        let _ = write!(
            html,
            "<h2>Captions <code>{}</code></h2>\n<p>{} captions; {} samples without. ",
            escape(&column.name),
            column.captions,
            column.samples_without
        );
        if let Some(Spread { min, median, p95, max }) = column.characters {
            let _ = write!(html, "Characters: {min} to {max}, median {median}, 95 % up to {p95}.");
        }
        html += "</p>\n<table>\n<tr><th class=\"n\">up to characters</th><th class=\"n\">captions</th><th></th></tr>\n";
        let most = column.histogram.iter().map(|bucket| bucket.count).max().unwrap_or(1);
        for bucket in &column.histogram {
            let _ = writeln!(
                html,
                "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td><span class=\"bar\" style=\"width:{:.1}rem\"></span></td></tr>",
                bucket.up_to,
                bucket.count,
                20.0 * bucket.count as f64 / most as f64
            );
        }
        html += "</table>\n";
    }
    html
}

fn figure(example: &Example, picture: &Result<String, String>) -> String {
    let mut html = String::from("<figure>");
    match picture {
        Ok(uri) => {
            let _ = write!(html, "<img alt=\"\" src=\"{}\">", escape(uri));
        }
        Err(reason) => {
            let _ = write!(html, "<p class=\"bad\">{}</p>", escape(reason));
        }
    }
    let size = example.size.map(|(width, height)| format!(", {width} x {height}")).unwrap_or_default();
    let place = escape(&format!("{}/{}{size}", example.shard, example.key));
    let _ = write!(html, "<figcaption><p class=\"dim\">{place}</p>");
    for caption in &example.captions {
        let (column, text) = (escape(&caption.column), escape(&caption.text));
        let _ = write!(html, "<p><span class=\"dim\">{column}</span> {text}</p>");
    }
    html + "</figcaption></figure>\n"
}

/// Text as HTML shows it and nothing else.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c if c.is_control() && c != '\n' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            escape("<script>alert('x' & \"y\")</script>\u{0}"),
            "&lt;script&gt;alert(&#39;x&#39; &amp; &quot;y&quot;)&lt;/script&gt; "
        );
        assert_eq!(escape("Senjō no\n日本"), "Senjō no\n日本");
    }
}
