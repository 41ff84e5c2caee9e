//! Curves of runs, one picture: the loss by step, and the accuracy on held-out data where there is one.

use std::path::Path;

use plotters::{coord::Shift, prelude::*};
use serde_json::Value;

use crate::{outcome::Failure, palette::COLOURS};

const WIDTH: u32 = 860;
const HEIGHT: u32 = 420;
/// Points of a curve at most: more are no longer told apart.
const POINTS: usize = 400;
/// Points that are drawn each by itself, too.
const FEW: usize = 40;

type Curve = (String, Vec<(f64, f64)>);

/// Draws runs, each by its name and what happened in it, into an SVG file.
///
/// # Errors
/// The file cannot be written, or there is nothing to draw.
pub fn draw(file: &Path, runs: &[(String, Vec<Value>)]) -> Result<(), Failure> {
    let curves = |kind: &str, of: &str| -> Vec<Curve> {
        let curves = runs.iter().map(|(name, events)| (name.clone(), points(events, kind, of)));
        curves.filter(|(_, points)| !points.is_empty()).collect()
    };
    let charts = [("loss of training", curves("step", "loss")), ("held-out accuracy", curves("eval", "accuracy"))];
    let charts: Vec<_> = charts.into_iter().filter(|(_, curves)| !curves.is_empty()).collect();
    if charts.is_empty() {
        return Err(Failure::Usage("--plot: none of the runs has made a step".into()));
    }
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(file, (WIDTH, HEIGHT * charts.len() as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (title, curves)) in root.split_evenly((charts.len(), 1)).iter().zip(&charts) {
            chart(area, title, curves)?;
        }
        root.present()?;
        Ok(())
    };
    drawn().map_err(|problem| Failure::Environment(format!("cannot draw {}: {problem}", file.display())))
}

/// A run's values by step. A step that was made again after a roll-back counts as it was made last.
fn points(events: &[Value], kind: &str, of: &str) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for event in events.iter().filter(|event| event["event"] == kind && event["of"].as_str() != Some("ema")) {
        let Some((step, value)) = event["step"].as_f64().zip(event[of].as_f64()) else { continue };
        while points.last().is_some_and(|(last, _)| *last >= step) {
            points.pop();
        }
        points.push((step, value));
    }
    let every = points.len().div_ceil(POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(at, _)| at % every == 0 || *at == last).map(|(_, point)| point).collect()
}

fn chart<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: 'static,
{
    let points = || curves.iter().flat_map(|(_, points)| points);
    let steps = points().map(|point| point.0).fold(1.0, f64::max);
    let (low, high) =
        points().map(|point| point.1).fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
    let margin = ((high - low) * 0.05).max(1e-9);
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .caption(title, ("sans-serif", 18))
        .build_cartesian_2d(0.0..steps, (low - margin)..(high + margin))?;
    chart.configure_mesh().x_desc("step").light_line_style(WHITE).draw()?;
    for (at, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let style = colour.stroke_width(2);
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        if points.len() <= FEW {
            // One point makes no line.
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.85)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_run_has_a_line_and_what_was_undone_is_left_out() {
        let step = |step: u64, loss: f64| json!({ "event": "step", "step": step, "loss": loss });
        let events = vec![step(1, 3.0), step(2, 9.0), step(2, 2.0), json!({ "event": "lost" }), step(3, 1.0)];
        assert_eq!(points(&events, "step", "loss"), [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]);
        let many: Vec<_> = (1..=1000).map(|at| step(at, 1.0)).collect();
        assert_eq!(
            (points(&many, "step", "loss").len(), points(&many, "step", "loss").last()),
            (334, Some(&(1000.0, 1.0)))
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.svg");
        draw(&file, &[("one".into(), events), ("two".into(), many)]).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("<svg") && text.contains("one") && text.contains("two"), "{text}");
        assert!(draw(&file, &[("none".into(), Vec::new())]).is_err());
    }
}
