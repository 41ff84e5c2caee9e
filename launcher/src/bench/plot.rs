//! Rounds drawn: how long one takes as parameters and workers grow.

use std::{collections::BTreeMap, path::Path};

use plotters::prelude::*;

use crate::{outcome::Failure, palette::COLOURS};

/// By transport and workers: sizes in MiB, and medians in milliseconds.
pub type Curves = BTreeMap<(String, u32), Vec<(f64, f64)>>;

const SIZE: (u32, u32) = (860, 520);

/// Draws them into an SVG file, both axes logarithmic; what goes through memory in full, through connections dotted.
///
/// # Errors
/// The file cannot be written, or there is nothing to draw.
pub fn draw(file: &Path, curves: &Curves) -> Result<(), Failure> {
    let points = || curves.values().flatten();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) =
            points().map(of).fold((f64::MAX, 0.0), |(low, high): (f64, f64), x| (low.min(x), high.max(x)));
        low * 0.8..high * 1.25
    };
    if points().next().is_none() {
        return Err(Failure::Usage("--plot: every cell was skipped, there is nothing to draw".into()));
    }
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    let drawn = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(file, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .caption("A synchronous round: push, sum, update, pull", ("sans-serif", 18))
            .build_cartesian_2d(x.log_scale(), y.log_scale())?;
        chart.configure_mesh().x_desc("parameters, MiB").y_desc("median, ms").light_line_style(WHITE).draw()?;
        let mut workers: Vec<u32> = curves.keys().map(|(_, workers)| *workers).collect();
        workers.sort_unstable();
        workers.dedup();
        for ((transport, count), curve) in curves {
            let nth = workers.iter().position(|workers| workers == count).unwrap_or(0);
            let style = COLOURS[nth % COLOURS.len()].stroke_width(2);
            let label = format!("{count} {}, {transport}", if *count == 1 { "worker" } else { "workers" });
            let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
            if transport.starts_with("grpc") {
                let line = DashedLineSeries::new(curve.iter().copied(), 5, 4, style);
                chart.draw_series(line)?.label(format!("{label} (dashed)")).legend(legend);
            } else {
                chart.draw_series(LineSeries::new(curve.iter().copied(), style))?.label(label).legend(legend);
            }
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::LowerRight).background_style(WHITE.mix(0.85)).border_style(BLACK.mix(0.3));
        legend.draw()?;
        root.present()?;
        Ok(())
    };
    drawn().map_err(|problem| Failure::Environment(format!("cannot draw {}: {problem}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_become_a_picture_with_a_line_each() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rounds.svg");
        let mut curves = Curves::new();
        curves.insert(("shm".into(), 2), vec![(1.0, 2.0), (64.0, 30.0)]);
        curves.insert(("grpc".into(), 2), vec![(1.0, 4.0), (64.0, 90.0)]);
        draw(&file, &curves).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.starts_with("<svg") && text.contains("2 workers, shm") && text.contains("2 workers, grpc (dashed)")
        );
        assert!(draw(&file, &Curves::new()).is_err());
    }
}
