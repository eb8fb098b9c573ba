"""The specification of headrace.order: what comes when, exactly, for ever and on every platform.

`reference` says it a second time, slowly and in plain Python; the golden files pin the numbers themselves.
"""
