//! Token ids from Python.

use crate::errors::input;
use numpy::{Element, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// Ids `[n]` of an array of integers, or of anything that gives integers one by one; below `vocab_size`.
pub fn take(given: &Bound<'_, PyAny>, vocab_size: usize) -> PyResult<Vec<u32>> {
    if let Ok(array) = given.cast::<PyUntypedArray>()
        && array.ndim() != 1
    {
        return Err(input(format!(
            "tokens: expected shape [n], found {:?}",
            array.shape()
        )));
    }
    if let Some(ids) = of_array::<u32>(given, vocab_size)
        .or_else(|| of_array::<i64>(given, vocab_size))
        .or_else(|| of_array::<i32>(given, vocab_size))
    {
        return ids;
    }
    let expected = |error: PyErr| {
        let text = format!("expected a text, or token ids [n]: {error}");
        PyTypeError::new_err(text)
    };
    let mut ids = Vec::new();
    for item in given.try_iter().map_err(expected)? {
        let id = item?.extract::<i64>().map_err(expected)?;
        ids.push(checked(ids.len(), id, vocab_size)?);
    }
    Ok(ids)
}

/// Of an array with elements of this type that lie one after another; none of another, whose elements may lie at any
/// address and in strides that are no whole elements, as those of a field of records do.
fn of_array<T: Element + Copy + Into<i64>>(
    given: &Bound<'_, PyAny>,
    vocab_size: usize,
) -> Option<PyResult<Vec<u32>>> {
    let array = given.extract::<PyReadonlyArray1<'_, T>>().ok()?;
    if !(array.is_aligned() && array.is_c_contiguous()) {
        return None;
    }
    let ids = array.as_array();
    let ids = ids.iter().enumerate();
    Some(
        ids.map(|(index, &id)| checked(index, id.into(), vocab_size))
            .collect(),
    )
}

/// In the words of `Limits::check`, which takes no number that is not one of 32 bits.
fn checked(index: usize, id: i64, vocab_size: usize) -> PyResult<u32> {
    let fits = u32::try_from(id).ok();
    let fits = fits.filter(|&id| (id as usize) < vocab_size);
    fits.ok_or_else(|| {
        let most = vocab_size.saturating_sub(1);
        input(format!("token {index}: expected 0 to {most}, found {id}"))
    })
}
