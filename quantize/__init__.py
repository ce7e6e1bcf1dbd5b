"""Makes the files that onecard serves: conversion, quantisation, importance matrices and the report card."""
