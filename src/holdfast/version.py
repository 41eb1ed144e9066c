"""The version of Holdfast, said here alone: the metadata of the built package are made from it."""

VERSION = "0.1.0"
