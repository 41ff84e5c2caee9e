//! What a node's servers wrote down of a run, handed to the coordinator when the run is over.

use std::path::Path;

use bytes::Bytes;
use convoy_proto::{ids::NodeId, transport::NodeClient};
use convoy_server::accounts;

/// Bytes of lines that are sent at once.
const AT_ONCE: usize = 1 << 20;

/// Hands over all ledgers below a directory.
///
/// # Errors
/// A file that cannot be read, or a coordinator that does not take it; says which.
pub(super) async fn hand_over(dir: &Path, client: &NodeClient, node: NodeId) -> Result<(), String> {
    let cannot =
        |path: &Path, problem: &dyn std::fmt::Display| format!("cannot hand over {}: {problem}", path.display());
    for path in accounts::files(dir).map_err(|problem| cannot(dir, &problem))? {
        let Some(server) = accounts::server_of(&path) else { continue };
        let text = std::fs::read(&path).map_err(|problem| cannot(&path, &problem))?;
        for lines in parts(&text) {
            let lines = Bytes::copy_from_slice(lines);
            client.hand_over(node, server, lines).await.map_err(|problem| cannot(&path, &problem))?;
        }
    }
    Ok(())
}

/// Whole lines, so many bytes at once if lines are shorter; one that was torn at the end is left out.
fn parts(text: &[u8]) -> Vec<&[u8]> {
    let end_of = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let mut rest = &text[..end_of(text).unwrap_or(0)];
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let near = rest.len().min(AT_ONCE);
        let cut = end_of(&rest[..near])
            .unwrap_or_else(|| rest.iter().position(|byte| *byte == b'\n').map_or(near, |at| at + 1));
        let (part, after) = rest.split_at(cut);
        parts.push(part);
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_lines_and_all_of_them() {
        assert_eq!(parts(b""), Vec::<&[u8]>::new());
        assert_eq!(parts(b"a\nb\ntorn"), [b"a\nb\n"]);
        let text = "0123456789\n".repeat(AT_ONCE / 5);
        let all = parts(text.as_bytes());
        assert!(all.len() > 1 && all.iter().all(|part| part.len() <= AT_ONCE && part.ends_with(b"\n")));
        assert_eq!(all.concat(), text.as_bytes());
    }
}
