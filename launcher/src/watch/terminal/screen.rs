//! What the live view looks like: one run, in as many lines as there are.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Cell, Chart, Dataset, GraphType, Paragraph, Row, Table},
};
use serde_json::Value;

use crate::{
    coordinator::durations::PHASES,
    table::cell_text,
    watch::{
        follow::Seen,
        status::{marks, span},
    },
};

/// Lines of curves at most, and of what happened.
const CURVES: u16 = 9;
const HAPPENED: u16 = 3;

/// What can be pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The view is the launcher's own.
    OfRun,
    /// The view is somebody else's.
    OfWatcher,
}

/// The lines that a run fills, of which there are so many at most; with so many workers and servers to come.
pub fn height(seen: &Seen, (workers, servers): (usize, usize), most: u16) -> u16 {
    let rows = |of: &str| seen.status[of].as_array().map_or(0, Vec::len);
    let members = rows("workers").max(workers) + 1 + rows("servers").max(servers) + 1;
    let wanted = 2 + CURVES + u16::try_from(members).unwrap_or(u16::MAX).min(most) + HAPPENED + 1;
    wanted.min(most).max(3)
}

/// Draws a run.
pub fn draw(frame: &mut Frame<'_>, seen: &Seen, (now, keys): (f64, Keys)) {
    let area = frame.area();
    let rows = |of: &str| seen.status[of].as_array().map_or(0, Vec::len) as u16;
    let fixed = 3 + HAPPENED;
    let members = (rows("workers") + 1).min(area.height.saturating_sub(fixed + 3).max(2));
    let servers = if area.height > fixed + members + rows("servers") { rows("servers") + 1 } else { 0 };
    let [head, curves, workers, shards, happened, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Length(members),
        Constraint::Length(servers),
        Constraint::Length(HAPPENED),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(headline(seen, head.width)), head);
    if curves.height >= 4 {
        draw_curves(frame, curves, seen);
    }
    frame.render_widget(worker_table(seen), workers);
    frame.render_widget(server_table(seen), shards);
    frame.render_widget(Paragraph::new(latest(seen, now)), happened);
    let keys = match keys {
        Keys::OfRun => "q leaves this view, the run goes on    Ctrl-C stops the run, a second one at once",
        Keys::OfWatcher => "q or Ctrl-C leaves this view, the run goes on",
    };
    frame.render_widget(Paragraph::new(Line::styled(keys, Style::new().dim())), foot);
}

/// Two lines: where the run stands, and how far it is.
fn headline(seen: &Seen, width: u16) -> Vec<Line<'static>> {
    let status = &seen.status;
    let number = |key: &str| status[key].as_f64();
    let word = cell_text(&status["status"]);
    let colour = match word.as_str() {
        "running" | "done" | "starting" => Color::Green,
        "stopped" => Color::Yellow,
        _ => Color::Red,
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut told =
        vec![Span::styled(seen.name.clone(), bold), "  ".into(), Span::styled(word, Style::new().fg(colour))];
    let mut tell = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            told.push(Span::styled(format!("   {name} "), Style::new().dim()));
            told.push(Span::styled(value, bold));
        }
    };
    tell("loss", seen.story.loss.last().map(|(_, loss)| format!("{loss:.4}")));
    tell("accuracy", status["eval"]["accuracy"].as_f64().map(|share| format!("{:.2} %", share * 100.0)));
    let rate = number("samples_per_second_now").filter(|_| seen.is_live).or_else(|| number("samples_per_second"));
    tell("samples/s", rate.map(|rate| format!("{rate:.0}")));
    tell("eta", number("eta_seconds").filter(|_| seen.is_live).map(span));
    tell("faults", status["faults"].as_u64().filter(|faults| *faults > 0).map(|faults| faults.to_string()));
    vec![Line::from(told), progress(seen, width)]
}

fn progress(seen: &Seen, width: u16) -> Line<'static> {
    let step = seen.story.step.max(seen.status["steps"].as_u64().unwrap_or(0));
    let Some(total) = seen.status["total_steps"].as_u64().filter(|total| *total > 0) else {
        return Line::from(format!("step {step}"));
    };
    let words = format!(" step {step} of {total}");
    let room = usize::from(width).saturating_sub(words.len()).min(60);
    let done = (room as f64 * (step as f64 / total as f64).min(1.0)) as usize;
    Line::from(vec![
        Span::styled("━".repeat(done), Style::new().fg(Color::Blue)),
        Span::styled("━".repeat(room - done), Style::new().dim()),
        words.into(),
    ])
}

fn draw_curves(frame: &mut Frame<'_>, area: Rect, seen: &Seen) {
    let loss: Vec<(f64, f64)> = seen.story.loss.points().collect();
    let accuracy: Vec<(f64, f64)> = seen.story.evaluation.accuracy.points().collect();
    let both = !accuracy.is_empty() && area.width >= 70;
    let parts = Layout::horizontal(vec![Constraint::Fill(1); if both { 2 } else { 1 }]).spacing(2).split(area);
    draw_curve(frame, parts[0], ("loss", Color::Blue), &loss);
    if both {
        draw_curve(frame, parts[1], ("held-out accuracy", Color::Green), &accuracy);
    }
}

fn draw_curve(frame: &mut Frame<'_>, area: Rect, (name, colour): (&str, Color), points: &[(f64, f64)]) {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
    let fold = |of: fn(f64, f64) -> f64, start| points.iter().map(|(_, y)| *y).fold(start, of);
    let (low, high) = (fold(f64::min, f64::MAX), fold(f64::max, f64::MIN));
    let margin = ((high - low) * 0.05).max(1e-6);
    let dim = Style::new().dim();
    let label = |value: f64| Span::styled(format!("{value:.3}"), dim);
    let step = |value: f64| Span::styled(format!("{value:.0}"), dim);
    let marks = if points.len() > 2 { Marker::Braille } else { Marker::Dot };
    let curve =
        Dataset::default().marker(marks).graph_type(GraphType::Line).style(Style::new().fg(colour)).data(points);
    let across = Axis::default().bounds([first.0, last.0.max(first.0 + 1.0)]).labels([step(first.0), step(last.0)]);
    let up = Axis::default().bounds([low - margin, high + margin]).labels([label(low), label(high)]);
    let title = Axis::title(across, Span::styled(name.to_string(), dim));
    frame.render_widget(Chart::new(vec![curve]).x_axis(title.style(dim)).y_axis(up.style(dim)), area);
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn number(value: &Value, digits: usize) -> Cell<'static> {
    right(value.as_f64().map(|value| format!("{value:.digits$}")).unwrap_or_default())
}

/// Names and widths of columns; what is a number is to the right.
fn table(columns: &[(&'static str, u16)], rows: Vec<Row<'static>>) -> Table<'static> {
    let heads = columns.iter().map(|(name, _)| match *name {
        "device" | "address" | "note" => Cell::from(*name),
        name => right(name.into()),
    });
    let widths = columns.iter().map(|(name, width)| match *name {
        "note" => Constraint::Fill(1),
        _ => Constraint::Length(*width),
    });
    Table::new(rows, widths).header(Row::new(heads).style(Style::new().dim())).column_spacing(1)
}

fn worker_table(seen: &Seen) -> Table<'static> {
    let columns = [
        ("rank", 4),
        ("device", 18),
        ("lag", 4),
        ("data", 6),
        ("comp.", 6),
        ("push", 6),
        ("wait", 6),
        ("pull", 6),
        ("ms p50", 7),
        ("smpl/s", 7),
        ("MiB", 6),
        ("heard", 6),
        ("rst", 3),
        ("note", 0),
    ];
    let row = |row: &Value| {
        let milliseconds = |of: &Value| right(of.as_f64().map(|s| format!("{:.1}", s * 1e3)).unwrap_or_default());
        let mut cells = vec![number(&row["rank"], 0), Cell::from(cell_text(&row["device"])), number(&row["lag"], 0)];
        let shown = PHASES.iter().filter(|phase| **phase != "load");
        cells.extend(shown.map(|phase| milliseconds(&row["step_seconds"][*phase])));
        cells.push(milliseconds(&row["step_seconds_p50"]));
        cells.push(number(&row["samples_per_second"], 0));
        cells.push(right(row["memory_bytes"].as_f64().map(|b| format!("{:.0}", b / 1_048_576.0)).unwrap_or_default()));
        cells.push(right(row["heartbeat_age_seconds"].as_f64().map(|s| format!("{s:.1} s")).unwrap_or_default()));
        cells.push(number(&row["restarts"], 0));
        cells.push(Cell::from(marks(row)));
        let style = match (row["alive"].as_bool(), row["straggler"].as_bool()) {
            (Some(false), _) => Style::new().fg(Color::Red),
            (_, Some(true)) => Style::new().fg(Color::Yellow),
            _ => Style::new(),
        };
        Row::new(cells).style(style)
    };
    table(&columns, seen.status["workers"].as_array().into_iter().flatten().map(row).collect())
}

fn server_table(seen: &Seen) -> Table<'static> {
    let columns = [
        ("server", 6),
        ("shard", 5),
        ("address", 21),
        ("pushes", 6),
        ("work s", 8),
        ("MiB", 6),
        ("rst", 3),
        ("note", 0),
    ];
    let row = |row: &Value| {
        Row::new(vec![
            number(&row["rank"], 0),
            number(&row["shard"], 0),
            Cell::from(cell_text(&row["address"])),
            number(&row["open_pushes"], 0),
            number(&row["work_seconds"], 2),
            right(row["memory_bytes"].as_f64().map(|b| format!("{:.0}", b / 1_048_576.0)).unwrap_or_default()),
            number(&row["restarts"], 0),
            Cell::from(marks(row)),
        ])
    };
    table(&columns, seen.status["servers"].as_array().into_iter().flatten().map(row).collect())
}

fn latest(seen: &Seen, now: f64) -> Vec<Line<'static>> {
    let lines = seen.story.timeline.iter().rev().take(HAPPENED.into()).map(|happened| {
        let ago = happened.time.map(|time| format!("{} ago  ", span(now - time))).unwrap_or_default();
        let style = if happened.is_trouble { Style::new().fg(Color::Red) } else { Style::new() };
        Line::from(vec![Span::styled(ago, Style::new().dim()), Span::styled(happened.text.clone(), style)])
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;

    use super::*;
    use crate::watch::story::Story;

    fn shown(seen: &Seen, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, seen, (100.0, Keys::OfRun))).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content().chunks(width.into());
        lines.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    fn seen() -> Seen {
        let mut story = Story::default();
        for step in 1..=50u64 {
            story.add(&json!({ "event": "step", "step": step, "loss": 2.0 / step as f64 }));
        }
        story.add(&json!({ "event": "eval", "of": "weights", "step": 25, "loss": 0.3, "accuracy": 0.5 }));
        story.add(&json!({ "event": "eval", "of": "weights", "step": 50, "loss": 0.2, "accuracy": 0.9 }));
        story.add(&json!({ "event": "fault", "member": "worker 1", "what": "worker 1 was killed", "time": 90.0 }));
        let worker = |rank: u32, alive: bool, straggler: bool| {
            json!({ "rank": rank, "device": "cpu", "alive": alive, "straggler": straggler, "lag": 0, "restarts": 1,
                    "step_seconds": { "data": 0.001, "compute": 0.0205, "push": 0.002, "wait": 0.03, "pull": 0.004 },
                    "step_seconds_p50": 0.06, "samples_per_second": 320.4, "memory_bytes": 104_857_600,
                    "heartbeat_age_seconds": 0.4, "last_fault": if alive { None } else { Some("killed") } })
        };
        let status = json!({
            "status": "running", "steps": 50, "total_steps": 100, "eta_seconds": 9.0, "samples_per_second_now": 640.0,
            "faults": 1, "eval": { "accuracy": 0.9 },
            "workers": [worker(0, true, true), worker(1, false, false)],
            "servers": [{ "rank": 0, "shard": 0, "address": "127.0.0.1:4000", "open_pushes": 2, "work_seconds": 1.5 }],
        });
        Seen { name: "digits-cnn".into(), is_live: true, status, story }
    }

    #[test]
    fn everything_is_on_the_screen_and_fits_it() {
        let seen = seen();
        assert_eq!(height(&seen, (0, 0), 40), 20);
        assert_eq!((height(&seen, (4, 2), 40), height(&seen, (2, 1), 10), height(&seen, (0, 0), 1)), (23, 10, 3));
        let text = shown(&seen, (120, 20));
        for words in [
            "digits-cnn  running   loss 0.0400   accuracy 90.00 %   samples/s 640   eta 9 s   faults 1",
            " step 50 of 100",
            "held-out accuracy",
            "straggler",
            "gone, had a fault",
            "20.5",
            "127.0.0.1:4000",
            "10 s ago  worker 1 was killed",
            "q leaves this view",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
        // Whatever the size, nothing panics.
        for size in [(1, 1), (10, 3), (40, 8), (70, 12), (300, 100)] {
            assert_eq!(shown(&seen, size).lines().count(), usize::from(size.1));
        }
        let empty = Seen { name: String::new(), is_live: false, status: Value::Null, story: Story::default() };
        assert!(shown(&empty, (80, 12)).contains("step 0"));
    }
}
