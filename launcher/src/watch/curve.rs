//! A curve of bounded length: means over as many points as it takes.

use serde::Serialize;

/// Points that are kept at most.
const MOST: usize = 600;

/// The points of a curve, by step. When there are too many, two become one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    points: Vec<Point>,
    /// How many values a point stands for.
    every: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// Its first and last step, and the sum of its values.
    first: f64,
    last: f64,
    sum: f64,
    count: usize,
}

impl Curve {
    /// Forgets what is at a step or later: it was undone.
    pub fn cut(&mut self, step: f64) {
        while self.points.last().is_some_and(|point| point.first >= step) {
            self.points.pop();
        }
    }

    /// Adds a value. Those of later steps are of what was undone, and go.
    pub fn add(&mut self, step: f64, value: f64) {
        self.cut(step);
        self.every = self.every.max(1);
        let next = Point { first: step, last: step, sum: value, count: 1 };
        match self.points.last_mut().filter(|point| point.count < self.every) {
            Some(point) => *point = point.and(next),
            None => self.points.push(next),
        }
        if self.points.len() > MOST {
            self.every *= 2;
            self.points =
                self.points.chunks(2).map(|pair| pair[1..].iter().fold(pair[0], |one, two| one.and(*two))).collect();
        }
    }

    /// What it comes to: the last step of each point, and its mean.
    pub fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.points.iter().map(|point| (point.last, point.sum / point.count as f64))
    }

    /// Its last value.
    pub fn last(&self) -> Option<(f64, f64)> {
        self.points.last().map(|point| (point.last, point.sum / point.count as f64))
    }
}

impl Point {
    fn and(self, next: Point) -> Point {
        Point { last: next.last, sum: self.sum + next.sum, count: self.count + next.count, ..self }
    }
}

impl Serialize for Curve {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.points())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_made_of_means() {
        let mut curve = Curve::default();
        (1..=600).for_each(|step| curve.add(f64::from(step), 1.0));
        assert_eq!((curve.points().count(), curve.last()), (600, Some((600.0, 1.0))));
        curve.add(601.0, 1.0);
        curve.add(602.0, 3.0);
        assert_eq!(
            (curve.points().count(), curve.points().next(), curve.last()),
            (301, Some((2.0, 1.0)), Some((602.0, 2.0)))
        );
        (603..=1_000_000).for_each(|step| curve.add(f64::from(step), 1.0));
        assert!((300..=600).contains(&curve.points().count()));
        let middle = curve.points().nth(100).unwrap();
        assert!((middle.1 - 1.0).abs() < 0.01 && curve.last().unwrap().0 == 1_000_000.0);
    }

    #[test]
    fn what_was_undone_goes() {
        let mut curve = Curve::default();
        [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (2.0, 9.0)].into_iter().for_each(|(step, value)| curve.add(step, value));
        assert_eq!(curve.points().collect::<Vec<_>>(), [(1.0, 1.0), (2.0, 9.0)]);
        assert_eq!(serde_json::to_string(&curve).unwrap(), "[[1.0,1.0],[2.0,9.0]]");
    }
}
