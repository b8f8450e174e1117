#!/bin/sh
kill -$signal "$$(cat $pidfile)"
